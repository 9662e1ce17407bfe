// Package box keeps virtual machines and all they need (libvirtd, its bridge,
// its DHCP server, firewall rules) in Linux namespaces of their own, so that the
// host is left alone and two boxes never meet.
package box

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// InsideVariable is set in the environment of what Enter runs, to the folder of
// the box it runs in.
const InsideVariable = "MARQUEE_BOX"

// How long the parts of a box may take. Up takes 0.2 s, and 1.7 s more at the
// first connection; Down 0.06 s with machines running.
const (
	upLimit   = 30 * time.Second
	downLimit = 10 * time.Second
)

// maxSocketPath is what a Unix socket's address holds, without the final zero.
const maxSocketPath = 107

// Box is one set of namespaces. Its folder holds everything it writes.
type Box struct {
	dir  string
	init []string
}

// New names the box of a folder; nothing is started. The command init is this
// program called so that it calls Init with the folder, which is appended to it.
func New(dir string, init ...string) (*Box, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the box's folder: %w", err)
	}
	return &Box{dir: abs, init: init}, nil
}

// Dir is the box's folder.
func (b *Box) Dir() string { return b.dir }

// logFile is where the box's own programs write.
func (b *Box) logFile() string { return filepath.Join(b.dir, "box.log") }

// process is the init of a box and when it started, by which it is known: the
// kernel gives numbers away again.
type process struct {
	PID     int    `json:"pid"`
	Started string `json:"started"` // clock ticks since boot
}

// lives says whether this very process runs.
func (p process) lives() bool {
	started, err := startTime(p.PID)
	return err == nil && started == p.Started
}

// startTime is the 22nd field of /proc/<pid>/stat; it fails for a process that
// only waits to be reaped.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	// The second field is the name, in parentheses, and may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}

func (b *Box) process() (process, bool) {
	text, err := os.ReadFile(filepath.Join(b.dir, "process.json"))
	if err != nil {
		return process{}, false
	}
	var p process
	if json.Unmarshal(text, &p) != nil || p.PID <= 1 || !p.lives() {
		return process{}, false
	}
	return p, true
}

// Running says whether the box is there.
func (b *Box) Running() bool {
	_, ok := b.process()
	return ok
}

// socket is where libvirtd listens, as the host sees it.
func (b *Box) socket() string { return filepath.Join(b.dir, "run", "libvirt-sock") }

// link is a short way to a socket in a deep folder.
func (b *Box) link() string {
	sum := sha256.Sum256([]byte(b.dir))
	return filepath.Join(os.TempDir(), "marquee-box-"+hex.EncodeToString(sum[:6]))
}

// shortSocket is the path of libvirtd's socket, short enough for a socket's address:
// where the box's folder is too deep, it goes through a symbolic link that Up
// makes and Down removes.
func (b *Box) shortSocket() (string, error) {
	if len(b.socket()) <= maxSocketPath {
		return b.socket(), nil
	}
	short := filepath.Join(b.link(), "libvirt-sock")
	if len(short) > maxSocketPath {
		return "", fmt.Errorf("the path of libvirtd's socket would be %d characters long (%s), %d is the most: set TMPDIR to a shorter folder, or move the checkout",
			len(short), short, maxSocketPath)
	}
	return short, nil
}

// URI is how libvirt's clients outside of the box find its libvirtd.
func (b *Box) URI() (string, error) {
	socket, err := b.shortSocket()
	if err != nil {
		return "", err
	}
	return "qemu:///system?socket=" + socket, nil
}

// ensureLink makes the short way where the socket's own path is too long.
func (b *Box) ensureLink() error {
	if _, err := b.shortSocket(); err != nil || len(b.socket()) <= maxSocketPath {
		return err
	}
	want := filepath.Join(b.dir, "run")
	// In a folder that everybody writes to, only a link of one's own is trusted.
	if info, err := os.Lstat(b.link()); err == nil {
		stat, ok := info.Sys().(*syscall.Stat_t)
		if target, err := os.Readlink(b.link()); ok && err == nil && target == want && int(stat.Uid) == os.Getuid() {
			return nil
		}
		if err := os.Remove(b.link()); err != nil {
			return fmt.Errorf("make a short way to the box's socket: %w: remove %s", err, b.link())
		}
	}
	if err := os.Symlink(want, b.link()); err != nil {
		return fmt.Errorf("make a short way to the box's socket: %w", err)
	}
	return nil
}

// libvirtConfig are the settings of libvirtd and QEMU in a box. Whoever opens
// the socket commands the machines: the folder's mode 0700 is the lock.
func libvirtConfig() map[string]string {
	return map[string]string{
		"libvirtd.conf": "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n",
		"qemu.conf": `security_driver = "none"
user = "root"
group = "root"
namespaces = []
remember_owner = 0
dynamic_ownership = 0
cgroup_controllers = []
`,
	}
}

// Up starts the box, or does nothing when it runs. It returns when libvirtd
// answers on the socket. When ctx ends before, or the box does not come up,
// nothing is left running.
func (b *Box) Up(ctx context.Context) error {
	if err := b.ensureLink(); err != nil {
		return err
	}
	if b.Running() {
		return b.answers(ctx)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return fmt.Errorf("make the box's folder: %w", err)
	}
	if err := os.Chmod(b.dir, 0o700); err != nil {
		return fmt.Errorf("make the box's folder: %w", err)
	}
	// What a killed box left in run would be taken for the new one's.
	if err := errors.Join(os.RemoveAll(filepath.Join(b.dir, "run")), os.RemoveAll(filepath.Join(b.dir, "process.json"))); err != nil {
		return fmt.Errorf("clear what an earlier box left: %w", err)
	}
	for _, dir := range []string{"etc", "run", "lib", "log", "cache"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			return fmt.Errorf("make the box's folder: %w", err)
		}
	}
	for name, text := range libvirtConfig() {
		if err := os.WriteFile(filepath.Join(b.dir, "etc", name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the box's settings: %w", err)
		}
	}
	return b.start(ctx)
}

func (b *Box) start(ctx context.Context) error {
	log, err := os.Create(b.logFile())
	if err != nil {
		return fmt.Errorf("make the box's log: %w", err)
	}
	defer log.Close()
	args := []string{"--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--propagation", "private", "--"}
	if os.Getuid() != 0 {
		args = append([]string{"--user", "--map-root-user", "--map-auto"}, args...)
	}
	args = append(append(args, b.init...), b.dir)
	// Not bound to ctx: the box outlives the command that starts it.
	cmd := exec.Command("unshare", args...) //nolint:noctx // it outlives this command and is ended by Down
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the box: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	ctx, cancel := context.WithTimeoutCause(ctx, upLimit, fmt.Errorf("libvirtd did not answer within %s", upLimit))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("the box did not start (%w)%s", err, b.why())
		case <-ctx.Done():
			// unshare kills the box's init when it ends itself.
			_ = cmd.Process.Kill()
			return fmt.Errorf("start the box: %w (%w)%s", context.Cause(ctx), <-ended, b.why())
		case <-tick.C:
			if b.Running() && dial(ctx, b) == nil {
				return nil
			}
		}
	}
}

func dial(ctx context.Context, b *Box) error {
	socket, err := b.shortSocket()
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (b *Box) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := dial(ctx, b)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("libvirtd in the box does not answer: %w%s", err, b.why())
		case <-tick.C:
		}
	}
}

// why is the end of the box's log, and what the common lines in it mean.
func (b *Box) why() string {
	text, err := os.ReadFile(b.logFile())
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	said := strings.Join(lines, "\n")
	switch {
	case strings.Contains(said, "newuidmap") || strings.Contains(said, "subuid") || strings.Contains(said, "failed to find mapping"):
		said += "\nAn ordinary user needs the package uidmap and a line in /etc/subuid and /etc/subgid: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER; or run this as root."
	case strings.Contains(said, "unshare failed"):
		said += "\nThis host does not let this user make namespaces: sysctl kernel.unprivileged_userns_clone=1 (and kernel.apparmor_restrict_unprivileged_userns=0 where there is such a setting), or run this as root."
	}
	return ":\n" + said
}

// Down ends everything in the box at once, machines too; a box that does not run
// is no error. The folder stays; Remove takes it too.
func (b *Box) Down(ctx context.Context) error {
	p, ok := b.process()
	if ok {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the box (process %d): %w", p.PID, err)
		}
		ctx, cancel := context.WithTimeout(ctx, downLimit)
		defer cancel()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for p.lives() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("end the box: process %d is still there after a kill: %w", p.PID, ctx.Err())
			case <-tick.C:
			}
		}
	}
	if target, err := os.Readlink(b.link()); err == nil && target == filepath.Join(b.dir, "run") {
		os.Remove(b.link())
	}
	if err := os.Remove(filepath.Join(b.dir, "process.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end the box: %w", err)
	}
	return nil
}

// Remove ends the box and removes its folder.
func (b *Box) Remove(ctx context.Context) error {
	if err := b.Down(ctx); err != nil {
		return err
	}
	err := os.RemoveAll(b.dir)
	if err == nil || os.Getuid() == 0 {
		return err
	}
	// What programs in the box wrote as another user belongs to this user's
	// range of numbers: only in a user namespace may it be removed.
	out, err := exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", b.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove the box's folder: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// ErrNotRunning says that there is no such box.
var ErrNotRunning = errors.New("the box does not run")

// Command is the command line that runs a program in the box's network: it sees
// the machines, the host's files and processes, and no other network.
func (b *Box) Command(argv ...string) ([]string, error) {
	p, ok := b.process()
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, b.dir)
	}
	line := []string{"nsenter", "--target", strconv.Itoa(p.PID), "--net"}
	if os.Getuid() != 0 {
		line = append(line, "--user", "--preserve-credentials")
	}
	return append(append(line, "--"), argv...), nil
}

// NetworkFile names the box's network, for setns.
func (b *Box) NetworkFile() (string, error) {
	p, ok := b.process()
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrNotRunning, b.dir)
	}
	return "/proc/" + strconv.Itoa(p.PID) + "/ns/net", nil
}

// Enter prepares a program to run in the box's network, with the caller's
// environment and InsideVariable.
func (b *Box) Enter(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	line, err := b.Command(argv...)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), InsideVariable+"="+b.dir)
	return cmd, nil
}

// Inside says whether this process runs in the box of a folder already.
func Inside(dir string) bool {
	abs, err := filepath.Abs(dir)
	return err == nil && os.Getenv(InsideVariable) == abs
}

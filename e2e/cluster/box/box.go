// Package box is a machine room inside one process tree: a box of namespaces
// with networks and machines in it, each machine with an address, a hostname, a
// root folder and processes of its own, which can be cut from power or from the
// network. It needs root, and the host keeps nothing of it, however it ends.
package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The program that uses this package starts itself again in three roles.
const (
	roleVariable = "MARQUEE_BOX_ROLE"
	roleKeeper   = "keeper"  // outside: starts the box, and tidies up after it
	roleInside   = "inside"  // the box's first process: the program's own business
	roleMachine  = "machine" // a machine's first process

	nameVariable = "MARQUEE_BOX_NAME" // the box's name
)

// ErrForbidden says that this process may not make namespaces.
var ErrForbidden = errors.New("namespaces of its own cannot be made here")

// Main plays the keeper or a machine's first process when this process was
// started as one, and then does not return. Call it first in main or TestMain.
func Main() {
	switch os.Getenv(roleVariable) {
	case roleKeeper:
		os.Exit(keep())
	case roleMachine:
		fmt.Fprintln(os.Stderr, "machine:", runMachine())
		os.Exit(1)
	}
}

// Inside says whether this process is the first one of a box.
func Inside() bool { return os.Getenv(roleVariable) == roleInside }

// Run starts this program again, with these arguments, as the first process of a
// box, and waits until it has ended; what it prints goes to output. Everything in
// the box ends with it, and it ends with ctx and with this process. The error is
// ErrForbidden where root may not make namespaces.
func Run(ctx context.Context, output io.Writer, args ...string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program to start it in a box: %w", err)
	}
	// A session of its own: Ctrl-C at the terminal ends us, and the keeper, which
	// sees that by the end of its input, lives on to tidy up.
	cmd := exec.Command(program, args...) //nolint:gosec,noctx // ourselves; ended through its input, so that it can tidy up
	cmd.Env = append(os.Environ(), roleVariable+"="+roleKeeper)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = output, output
	input, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start a box: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a box: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { input.Close() })
	err = cmd.Wait()
	stop()
	input.Close()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the box was ended: %w", ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == exitForbidden:
		return ErrForbidden
	case err != nil:
		return fmt.Errorf("the program in the box: %w", err)
	}
	return nil
}

// Box is the box as seen from inside.
type Box struct {
	name string
	dir  string

	mu       sync.Mutex
	networks int
}

// Open prepares the box around this process, which must be its first one.
func Open(ctx context.Context) (*Box, error) {
	if !Inside() || os.Getpid() != 1 {
		return nil, errors.New("this process is not the first one of a box: start it with box.Run")
	}
	b := &Box{name: os.Getenv(nameVariable), dir: "/run/box"}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		// All that machines write is here and goes with the box.
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return nil, fmt.Errorf("mount %s in the box: %w", m.target, err)
		}
	}
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the box's folder: %w", err)
	}
	// As every machine has: what this process does must not starve among much
	// else on the host.
	if err := makeGroups(b.group("box")); err != nil {
		return nil, err
	}
	if err := joinGroups(b.group("box")); err != nil {
		return nil, err
	}
	// This network's own setting: machines are reached through it from outside
	// their network, as through a router.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, fmt.Errorf("let the box forward packets: %w", err)
	}
	return b, ip(ctx, "link set lo up")
}

// group names a control group; the keeper removes it.
func (b *Box) group(of string) string { return groupPrefix + b.name + "-" + of }

// Network is a switch with a router: machines have an address in its range and
// reach what is elsewhere in the box through the router. Nothing leads out of
// the box.
type Network struct {
	box    *Box
	bridge string
	prefix netip.Prefix
	router netip.Addr
}

// Network makes a network; the router, which is the box itself, has the first
// address of the range.
func (b *Box) Network(ctx context.Context, cidr string) (*Network, error) {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, fmt.Errorf("make a network: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.networks++
	n := &Network{box: b, bridge: fmt.Sprintf("br%d", b.networks), prefix: prefix.Masked(), router: prefix.Masked().Addr().Next()}
	return n, ip(ctx,
		// An address of its own: it would take that of a plug, and change it with
		// the plugs, while machines remember the old one.
		"link add "+n.bridge+" address "+hardwareAddress(n.router).String()+" type bridge forward_delay 0",
		"addr add "+netip.PrefixFrom(n.router, prefix.Bits()).String()+" dev "+n.bridge,
		"link set "+n.bridge+" up",
	)
}

// CallFrom makes the box's own calls into the network come from an address that
// is not in its range.
func (n *Network) CallFrom(ctx context.Context, address string) error {
	return ip(ctx,
		"addr add "+address+"/32 dev lo",
		"route replace "+n.prefix.String()+" dev "+n.bridge+" scope link src "+address,
	)
}

// ip runs commands of ip(8), all or up to the first that fails.
func ip(ctx context.Context, commands ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(commands, "; "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// The keeper.
const (
	exitForbidden = 77
	groupPrefix   = "marquee-box-"
	// groupBound is how long removed control groups may take to be empty after
	// the processes in them were killed.
	groupBound = 10 * time.Second
)

// keep runs the box and removes afterwards what namespaces do not hold: control
// groups. It lives until its input ends, which it does with whoever started it.
func keep() int {
	name := fmt.Sprint(os.Getpid())
	if err := removeGroupsOfTheDead(); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec,noctx // ourselves; killed below
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, roleVariable+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, roleVariable+"="+roleInside, nameVariable+"="+name)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The end of whoever reads our output must not keep us from tidying up.
	signal.Ignore(syscall.SIGPIPE)
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread ends that started the process.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		fmt.Fprintln(os.Stderr, "box: start in namespaces of its own:", err)
		return exitForbidden
	}
	orphaned := make(chan struct{})
	go func() { // ends with this process
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	var err error
	select {
	case err = <-ended:
	case <-orphaned:
		_ = cmd.Process.Kill() // it may have ended just now
		err = <-ended
	}
	if err := removeGroups(name); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		return 1
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case err != nil:
		return 1
	}
	return 0
}

// removeGroups removes a box's control groups, each hierarchy's.
func removeGroups(name string) error {
	var last error
	for began := time.Now(); time.Since(began) < groupBound; {
		groups, err := groupsOf(groupPrefix + name + "-")
		if err != nil {
			return err
		}
		last = nil
		for _, group := range groups {
			last = errors.Join(last, removeGroup(group))
		}
		if last == nil {
			return nil
		}
		<-time.After(20 * time.Millisecond) // until the kernel has let go of processes
	}
	return fmt.Errorf("remove the box's control groups: %w", last)
}

// removeGroupsOfTheDead removes those of boxes whose keeper was killed too.
func removeGroupsOfTheDead() error {
	groups, err := groupsOf(groupPrefix)
	if err != nil {
		return err
	}
	for _, group := range groups {
		name, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(group), groupPrefix), "-")
		if _, err := os.Stat("/proc/" + name); errors.Is(err, os.ErrNotExist) {
			if err := removeGroups(name); err != nil {
				return err
			}
		}
	}
	return nil
}

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/files"
)

// process is one running process. It is known by its start time too, so that a
// number that the kernel gave away again is never taken for it.
type process struct {
	pid     int
	started string   // clock ticks since boot
	parent  int      //
	tty     bool     // somebody sits in front of it
	exe     string   // path of the program
	args    []string //
	cwd     string   //
	env     []string // empty where it cannot be read
}

// readProcess reads what /proc says; ok is false when there is no such process
// or it is only waiting to be reaped.
func readProcess(pid int) (p process, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, false
	}
	// pid (name) state ppid pgrp session tty_nr …; the name may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, false
	}
	p = process{pid: pid, started: fields[19], tty: fields[4] != "0"}
	p.parent, _ = strconv.Atoi(fields[1])
	if cmdline, err := os.ReadFile(dir + "/cmdline"); err == nil {
		p.args = strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	}
	if exe, err := os.Readlink(dir + "/exe"); err == nil {
		p.exe = strings.TrimSuffix(exe, " (deleted)")
	}
	p.cwd, _ = os.Readlink(dir + "/cwd")
	if environ, err := os.ReadFile(dir + "/environ"); err == nil {
		p.env = strings.Split(string(environ), "\x00")
	}
	return p, true
}

func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var found []process
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				found = append(found, p)
			}
		}
	}
	return found, nil
}

// lives says whether this very process still runs.
func (p process) lives() bool {
	now, ok := readProcess(p.pid)
	return ok && now.started == p.started
}

// signal sends to this very process or to nobody.
func (p process) signal(sig syscall.Signal) error {
	// A handle (pidfd) stays with the process it was opened for; looking again
	// after opening it shows that this is the one that was meant.
	handle, err := os.FindProcess(p.pid)
	if err != nil {
		return nil // it is gone, which is what signals are for
	}
	defer func() { _ = handle.Release() }()
	if !p.lives() {
		return nil
	}
	if err := handle.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d (%s): %w", p.pid, filepath.Base(p.exe), err)
	}
	return nil
}

// gone waits until none of the processes lives and returns those that do when
// the time is over.
func gone(ctx context.Context, bound time.Duration, all []process) []process {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		all = slices.DeleteFunc(slices.Clone(all), func(p process) bool { return !p.lives() })
		if len(all) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return all
		case <-tick.C:
		}
	}
}

// agent is one of the three programs: how it is started and recognised.
type agent struct {
	name    string
	program string
	flag    string // before the configuration's path
	config  string // path of its configuration
	text    func() ([]byte, error)
	path    []string // folders that its PATH has besides the system's
	address string
	ports   []agentPort
}

type agentPort struct {
	offset int
	udp    bool
	what   string
}

// args name the configuration; both agents take the flag with one hyphen.
func (a agent) args() []string { return []string{"agent", a.flag + a.config} }

// running finds an agent's process, if any, by its arguments: they name a file
// that no other cluster has. That also finds one whose starter was killed.
func (c *Cluster) running(a agent) (*process, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if len(p.args) == 3 && slices.Equal(p.args[1:], a.args()) {
			return &p, nil
		}
	}
	return nil, nil
}

// ensureRunning starts an agent that does not run and says whether it did.
func (c *Cluster) ensureRunning(ctx context.Context, a agent) (started bool, err error) {
	found, err := c.running(a)
	if err != nil {
		return false, err
	}
	if found != nil {
		c.watch(a.name, *found)
		return false, nil
	}
	for _, p := range a.ports {
		if err := checkFree(ctx, c.port(p.offset), p.udp, p.what); err != nil {
			return false, err
		}
	}
	text, err := a.text()
	if err != nil {
		return false, fmt.Errorf("configure %s: %w", a.name, err)
	}
	if err := files.Replace(a.config, text, 0o600); err != nil {
		return false, err
	}
	if err := c.start(a); err != nil {
		return false, fmt.Errorf("start %s: %w", a.name, err)
	}
	return true, nil
}

// start starts an agent that outlives this process: a session of its own, no
// terminal, its own log. Its environment is clean because raw_exec hands
// Nomad's on to every task.
func (c *Cluster) start(a agent) error {
	logFile := c.logPath(a.name)
	if err := os.Rename(logFile, logFile+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(a.program, a.args()...) //nolint:noctx // it must outlive every context of this process
	cmd.Dir = c.cfg.Dir
	cmd.Env = []string{
		"PATH=" + strings.Join(append(a.path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"), ":"),
		"HOME=" + c.cfg.Dir,
		"TMPDIR=" + c.path("tmp"),
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	started, _ := readProcess(cmd.Process.Pid)
	c.watch(a.name, started)
	exited := make(chan struct{})
	go func() {
		// Reaps the agent when it ends before this process does; Down waits for it.
		defer close(exited)
		_ = cmd.Wait()
	}()
	c.mu.Lock()
	c.exited[a.name] = exited
	c.mu.Unlock()
	return nil
}

// watch remembers the process whose end makes waiting for an agent pointless.
func (c *Cluster) watch(name string, p process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched[name] = p
}

// died says whether the process that was started or found has ended.
func (c *Cluster) died(name string) bool {
	c.mu.Lock()
	p, ok := c.watched[name]
	c.mu.Unlock()
	return ok && !p.lives()
}

// waitFor polls until the condition holds. It fails when the bound is over or an
// agent that the condition needs has ended, with the end of that agent's log.
func (c *Cluster) waitFor(ctx context.Context, what string, bound time.Duration, agentName string, condition func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancelAttempt := context.WithTimeout(bounded, 10*time.Second)
		err := condition(attempt)
		cancelAttempt()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		}
		if c.died(agentName) {
			return fmt.Errorf("%s has ended; the end of its log:\n%s", agentName, tail(c.logPath(agentName), 12))
		}
		select {
		case <-bounded.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("wait until %s: %w", what, ctx.Err())
			}
			return fmt.Errorf("wait until %s: not within %s: %w; the end of %s:\n%s", what, bound, err, c.logPath(agentName), tail(c.logPath(agentName), 12))
		case <-tick.C:
		}
	}
}

// tail is the last lines of a log.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const enough = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > enough {
		if _, err := f.Seek(-enough, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/bench/yardstick"
)

// process is one of the programs under test.
type process struct {
	name    string
	pid     int
	cmd     *exec.Cmd // nil for Postgres, which is stopped in its own way
	log     string
	address string // where a yardstick said that it listens
}

// start runs a program with its output in a file; it ends with stop.
func (b *bench) start(name string, env []string, binary string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(b.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("make the log of %s: %w", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(binary, args...) //nolint:noctx // it is stopped by its pid, in order
	// The garbage collector's pace is the same for all, that of our services.
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "GOGC=400"}, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.pid = p.cmd.Process.Pid
	b.closers = append(b.closers, p.stop)
	return p, nil
}

// startService runs one of the repository's services in the cluster.
func (b *bench) startService(name, program string, args ...string) (*process, error) {
	return b.start(name, b.env, b.programs[program].Path, append(args, "--environment="+yardstick.Environment, "--log-level=warn")...)
}

// startYardstick runs a yardstick and waits until it says where it listens.
func (b *bench) startYardstick(ctx context.Context, name string, env []string, args ...string) (*process, error) {
	p, err := b.start(name, env, filepath.Join(b.dir, strings.SplitN(name, "-", 2)[0]), args...)
	if err != nil {
		return nil, err
	}
	err = until(ctx, name+" says where it listens", func(context.Context) error {
		p.address, err = p.line("listening on ")
		return err
	})
	return p, err
}

// line is the rest of the first line of the output that starts with prefix.
func (p *process) line(prefix string) (string, error) {
	said, err := os.ReadFile(p.log)
	if err != nil {
		return "", fmt.Errorf("read the output of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(said)) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("%s has not said %q but\n%s", p.name, prefix, said)
}

// lastWords are the end of the output, for who has to find out what went wrong.
func (p *process) lastWords() string {
	const most = 2000
	said, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(said[max(0, len(said)-most):])
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// clockTick is the unit of /proc/PID/stat: 1/100 s on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuOf is the processor time that each process and its children have used: a
// Postgres is one process for each connection.
func cpuOf(processes []*process) ([]time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	used := make([]time.Duration, len(processes))
	found := make([]bool, len(processes))
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil { // it has ended meanwhile
			continue
		}
		pid, parent, its, err := parseStat(string(text))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		for i, p := range processes {
			if pid == p.pid || parent == p.pid {
				used[i] += its
				found[i] = found[i] || pid == p.pid
			}
		}
	}
	for i, p := range processes {
		if !found[i] {
			said, _ := os.ReadFile(p.log) // none is no other failure
			return nil, fmt.Errorf("%s has ended; it said\n%s", p.name, said)
		}
	}
	return used, nil
}

// parseStat reads a /proc/PID/stat: the processor time is user and system, and
// that of children that have ended.
func parseStat(text string) (pid, parent int, used time.Duration, err error) {
	// The name in parentheses may hold spaces; the fields after it do not.
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return 0, 0, 0, fmt.Errorf("no name in %q", text)
	}
	fields := strings.Fields(text[end+1:])
	const first, ppid, utime, cstime = 3, 4, 14, 17 // as proc(5) counts
	if len(fields) <= cstime-first {
		return 0, 0, 0, fmt.Errorf("only %d fields in %q", len(fields), text)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(text[:open])); err != nil {
		return 0, 0, 0, err
	}
	if parent, err = strconv.Atoi(fields[ppid-first]); err != nil {
		return 0, 0, 0, err
	}
	for _, field := range fields[utime-first : cstime-first+1] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, 0, err
		}
		used += time.Duration(ticks) * clockTick
	}
	return pid, parent, used, nil
}

// ownCPU is the processor time that this process has used, without those that it
// started.
func ownCPU() time.Duration {
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used) // fails on wrong arguments only
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// until waits for a condition, for at most a minute. Each try has two seconds.
func until(ctx context.Context, what string, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		within, over := context.WithTimeout(ctx, 2*time.Second)
		err := condition(within)
		over()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, err)
		case <-tick.C:
		}
	}
}

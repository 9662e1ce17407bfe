package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one of the programs under test.
type process struct {
	name    string
	cmd     *exec.Cmd
	log     string
	address string // where a yardstick said that it listens
}

// start runs a program with its output in a file; it ends with stop.
func (b *bench) start(name string, env []string, binary string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(b.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
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
	b.processes = append(b.processes, p)
	return p, nil
}

// startYardstick runs a yardstick and waits until it says where it listens.
func (b *bench) startYardstick(ctx context.Context, name string, env []string, args ...string) (*process, error) {
	p, err := b.start(name, env, filepath.Join(b.dir, strings.SplitN(name, "-", 2)[0]), args...)
	if err != nil {
		return nil, err
	}
	err = b.until(ctx, name+" says where it listens", func() error {
		line, err := p.line("listening on ")
		if err == nil {
			p.address = line
		}
		return err
	})
	return p, err
}

// line is the rest of the first line of the log that starts with prefix.
func (p *process) line(prefix string) (string, error) {
	f, err := os.Open(p.log)
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), prefix); ok {
			return rest, nil
		}
	}
	return "", fmt.Errorf("%s has not said %q; its log is %s", p.name, prefix, p.log)
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

// cpuTime is the processor time that a process has used, user and system. Pid 0
// is this process.
func cpuTime(pid int) (time.Duration, error) {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	stat, err := os.ReadFile(filepath.Join("/proc", who, "stat"))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; the fields after it do not.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3 // proc(5) counts from 1, and two fields are cut off
	var total time.Duration
	for _, i := range []int{utime, stime} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/%s/stat: %w", who, err)
		}
		total += time.Duration(ticks) * clockTick
	}
	return total, nil
}

// until waits for a condition, for at most a minute.
func (b *bench) until(ctx context.Context, what string, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
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

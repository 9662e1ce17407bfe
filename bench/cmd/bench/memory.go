package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// memoryOf is the memory that a process has in RAM, in bytes: its proportional set
// size. What the kernel keeps for its sockets is not in it.
func memoryOf(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of a process: %w", err)
	}
	return parsePss(string(text))
}

// parsePss reads /proc/PID/smaps_rollup.
func parsePss(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" && fields[2] == "kB" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("no Pss in %q", text)
}

// settled is the memory of a process when it has not changed by more than a
// hundredth for two seconds, or after 20.
func settled(ctx context.Context, pid int) (int64, error) {
	const (
		steps   = 40
		calm    = 4
		between = 500 * time.Millisecond
	)
	last, same := int64(0), 0
	for range steps {
		now, err := memoryOf(pid)
		if err != nil {
			return 0, err
		}
		if change := now - last; change*100 <= last && change*100 >= -last {
			same++
		} else {
			last, same = now, 0
		}
		if same == calm {
			return now, nil
		}
		if pause(ctx, between); ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return last, nil
}

// goHeap is what a Go process with an admin port says of its memory, in bytes.
type goHeap struct {
	live, stacks int64
	goroutines   int64
}

// collections are what it takes until a Go process has no more than it needs: each
// halves the stacks that are too large, and the runtime collects every two minutes
// when nothing happens.
const collections = 6

// collected has a Go process collect its garbage, and returns its heap profile.
func collected(ctx context.Context, admin string) (profile []byte, err error) {
	for range collections {
		if profile, err = fetch(ctx, "http://"+admin+"/debug/pprof/heap?gc=1"); err != nil {
			return nil, fmt.Errorf("have a process collect its garbage: %w", err)
		}
	}
	return profile, nil
}

// heapOf collects a process's garbage and writes its heap profile to a file.
func heapOf(ctx context.Context, admin, profile string) (goHeap, error) {
	text, err := collected(ctx, admin)
	if err != nil {
		return goHeap{}, err
	}
	if err := os.WriteFile(profile, text, 0o600); err != nil {
		return goHeap{}, fmt.Errorf("keep a heap profile: %w", err)
	}
	text, err = fetch(ctx, "http://"+admin+"/metrics")
	if err != nil {
		return goHeap{}, err
	}
	var h goHeap
	for name, into := range map[string]*int64{"go_memstats_heap_alloc_bytes": &h.live, "go_memstats_stack_inuse_bytes": &h.stacks, "go_goroutines": &h.goroutines} {
		value, err := metric(string(text), name)
		if err != nil {
			return goHeap{}, err
		}
		*into = int64(value)
	}
	return h, nil
}

// metric is a value without labels in Prometheus's text format.
func metric(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, mostWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return text, err
}

// allocation is what a function has allocated that is in use.
type allocation struct {
	function string
	bytes    int64
}

// allocations are those by which a heap profile is greater than an earlier one, the
// greatest first.
func allocations(ctx context.Context, before, after string, most int) ([]allocation, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-sample_index=inuse_space", "-unit=B", fmt.Sprint("-nodecount=", most), "-base", before, after)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+filepath.Dir(after))
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read the heap profile: %w\n%s", err, out)
	}
	return parseTop(string(out))
}

// topLine is a line of pprof -top: flat and its share, the sum of shares, what
// functions below are counted in, its share, and the function.
var topLine = regexp.MustCompile(`^\s*(-?[0-9.]+)B?\s+\S+%\s+\S+%\s+\S+\s+\S+%\s+(.+?)\s*$`)

func parseTop(text string) ([]allocation, error) {
	var all []allocation
	for line := range strings.Lines(text) {
		m := topLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		bytes, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, fmt.Errorf("read the heap profile: %q: %w", line, err)
		}
		all = append(all, allocation{function: m[2], bytes: int64(bytes)})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read the heap profile: nothing in\n%s", text)
	}
	return all, nil
}

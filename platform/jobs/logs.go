package jobs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// tailBytes bounds what is read back from the end of a log.
const tailBytes = 256 << 10

// LogOptions say which part of the logs is wanted.
type LogOptions struct {
	// Lines is how many lines of each stream are shown from before now.
	Lines int
	// Follow goes on until the context ends, also with instances that start
	// later.
	Follow bool
}

// Logs writes the logs of all instances of a job to w, each line after the
// first characters of its allocation and its task, standard output and standard
// error together. Lines are written whole. Without Follow, allocations come one
// after the other.
func (c *Client) Logs(ctx context.Context, id string, o LogOptions, w io.Writer) error {
	allocs, err := c.allocations(ctx, id)
	if err != nil {
		return err
	}
	if len(allocs) == 0 {
		if _, err := c.job(ctx, id); err != nil {
			return err
		}
		return fmt.Errorf("job %q has no logs: none of its instances is remembered", id)
	}
	sort.Slice(allocs, func(a, b int) bool { return allocs[a].CreateIndex < allocs[b].CreateIndex })
	out := &lineWriter{w: w}
	if o.Follow {
		return c.follow(ctx, id, o, out)
	}
	for _, alloc := range allocs {
		for _, s := range streams(alloc) {
			if err := c.tail(ctx, s, o, out); err != nil {
				return err
			}
		}
	}
	return out.err()
}

// allocLogs returns the last lines of one allocation's logs, all its tasks'
// standard output and standard error, as Logs writes them.
func (c *Client) allocLogs(ctx context.Context, allocID string, lines int) (string, error) {
	alloc, _, err := c.nomad.Allocations().Info(allocID, query(ctx))
	if err != nil {
		return "", fmt.Errorf("reading allocation %s: %w", Short(allocID), explain(err))
	}
	var text bytes.Buffer
	out := &lineWriter{w: &text}
	for _, s := range streams(alloc.Stub()) {
		if err := c.tail(ctx, s, LogOptions{Lines: lines}, out); err != nil {
			return text.String(), err
		}
	}
	return text.String(), nil
}

// stream is one task's standard output or standard error.
type stream struct {
	allocID, task, kind string
}

func streams(alloc *nomad.AllocationListStub) []stream {
	var all []stream
	for task, state := range alloc.TaskStates {
		if !state.StartedAt.IsZero() {
			all = append(all, stream{alloc.ID, task, "stdout"}, stream{alloc.ID, task, "stderr"})
		}
	}
	sort.Slice(all, func(a, b int) bool {
		return all[a].task+all[a].kind < all[b].task+all[b].kind
	})
	return all
}

// follow tails the streams of all allocations, and of new ones as they come.
func (c *Client) follow(ctx context.Context, id string, o LogOptions, out *lineWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()

	seen := make(map[stream]bool)
	first := true
	q := query(ctx)
	q.WaitTime = 30 * time.Second
	for {
		allocs, meta, err := c.nomad.Jobs().Allocations(id, false, q)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching the allocations of job %s: %w", id, explain(err))
		}
		for _, alloc := range allocs {
			for _, s := range streams(alloc) {
				if seen[s] || (terminal(alloc.ClientStatus) && first) {
					continue
				}
				seen[s] = true
				from := o
				if !first {
					from.Lines = 1 << 20 // one that started since: everything it says
				}
				readers.Go(func() {
					if err := c.tail(ctx, s, from, out); err != nil && ctx.Err() == nil {
						out.line(s, []byte("the log cannot be read: "+err.Error()))
					}
				})
			}
		}
		first = false
		if err := out.err(); err != nil {
			return err
		}
		q.WaitIndex = meta.LastIndex
	}
}

// tail writes a stream's last lines, and what follows when that is wanted.
func (c *Client) tail(ctx context.Context, s stream, o LogOptions, out *lineWriter) error {
	q := query(ctx)
	q.Params = map[string]string{
		"task": s.task, "type": s.kind, "plain": "true",
		"origin": "end", "offset": strconv.Itoa(tailBytes), "follow": "false",
	}
	body, err := c.nomad.Raw().Response("/v1/client/fs/logs/"+s.allocID, q)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the %s of %s in allocation %s: %w", s.kind, s.task, Short(s.allocID), explain(err))
	}
	past, err := io.ReadAll(body)
	err = errors.Join(err, body.Close())
	if err != nil {
		return fmt.Errorf("reading the %s of %s in allocation %s: %w", s.kind, s.task, Short(s.allocID), err)
	}
	whole := len(past) < tailBytes
	for _, line := range lastLines(past, o.Lines, whole) {
		out.line(s, line)
	}
	if !o.Follow {
		return nil
	}

	// What comes after that. Nomad takes the offset 0 from the end for the start of
	// the file, so that of a long log the last byte is read once more, and left out.
	q.Params["follow"], q.Params["origin"], q.Params["offset"] = "true", "start", strconv.Itoa(len(past))
	if !whole {
		q.Params["origin"], q.Params["offset"] = "end", "1"
	}
	if body, err = c.nomad.Raw().Response("/v1/client/fs/logs/"+s.allocID, q); err != nil {
		return fmt.Errorf("following the %s of %s in allocation %s: %w", s.kind, s.task, Short(s.allocID), explain(err))
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	if !whole {
		lines.Scan()
	}
	for lines.Scan() {
		out.line(s, lines.Bytes())
	}
	return lines.Err()
}

// lastLines are the last n lines of text. When text is not whole its first line
// is a part of one and left out.
func lastLines(text []byte, n int, whole bool) [][]byte {
	text = bytes.TrimSuffix(text, []byte("\n"))
	if len(text) == 0 || n <= 0 {
		return nil
	}
	lines := bytes.Split(text, []byte("\n"))
	if !whole && len(lines) > 1 {
		lines = lines[1:]
	}
	return lines[max(0, len(lines)-n):]
}

// lineWriter writes whole lines from several streams.
type lineWriter struct {
	mu     sync.Mutex
	w      io.Writer
	failed error
}

func (l *lineWriter) line(s stream, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		_, l.failed = fmt.Fprintf(l.w, "%s %s | %s\n", Short(s.allocID), s.task, line)
	}
}

func (l *lineWriter) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

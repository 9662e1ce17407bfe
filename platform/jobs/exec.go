package jobs

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// ExecOptions say what is run beside a task, and where its streams go.
type ExecOptions struct {
	// Task is needed when the instance has several.
	Task string
	// Command and its arguments; no shell is involved.
	Command []string
	// Stdin is read until its end; nil is empty.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY gives the command a terminal: standard error then arrives in Stdout.
	TTY bool
	// Resize tells the terminal's size, first of all the present one; nil for
	// none.
	Resize <-chan nomad.TerminalSize
}

// Exec runs a command beside a task of a running instance, with the task's
// rights, file system and environment, and returns its exit code. target is a
// job of which one instance runs, or an allocation's id or the beginning of one.
func (c *Client) Exec(ctx context.Context, target string, o ExecOptions) (int, error) {
	alloc, err := c.instance(ctx, target)
	if err != nil {
		return 0, err
	}
	task, err := runningTask(alloc, o.Task)
	if err != nil {
		return 0, err
	}
	stdin := o.Stdin
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	resize := o.Resize
	if resize == nil {
		resize = make(chan nomad.TerminalSize)
	}
	code, err := c.nomad.Allocations().Exec(ctx, alloc, task, o.TTY, o.Command, stdin, o.Stdout, o.Stderr, resize, query(ctx))
	if err != nil {
		return 0, fmt.Errorf("running %s in %s of allocation %s: %w", o.Command[0], task, Short(alloc.ID), explain(err))
	}
	return code, nil
}

// instance is the one running allocation that target means.
func (c *Client) instance(ctx context.Context, target string) (*nomad.Allocation, error) {
	allocs, err := c.allocations(ctx, target)
	if err != nil {
		return nil, err
	}
	of := "job " + target
	if len(allocs) == 0 && isAllocationID(target) {
		// Nomad finds prefixes only of an even length.
		q := query(ctx)
		q.Prefix = target[:len(target)/2*2]
		if allocs, _, err = c.nomad.Allocations().List(q); err != nil {
			return nil, fmt.Errorf("looking for allocation %s: %w", target, explain(err))
		}
		of = "an id that begins with " + target
	}
	var running []*nomad.AllocationListStub
	for _, alloc := range allocs {
		if alloc.ClientStatus == nomad.AllocClientStatusRunning && (alloc.JobID == target || strings.HasPrefix(alloc.ID, target)) {
			running = append(running, alloc)
		}
	}
	switch {
	case len(running) == 0 && len(allocs) > 0:
		return nil, fmt.Errorf("no instance of %s runs", of)
	case len(running) == 0:
		return nil, c.unknown(ctx, target)
	case len(running) > 1:
		sort.Slice(running, func(a, b int) bool { return running[a].ID < running[b].ID })
		var names []string
		for _, alloc := range running {
			names = append(names, fmt.Sprintf("%s (%s on %s)", Short(alloc.ID), alloc.JobID, alloc.NodeName))
		}
		return nil, fmt.Errorf("%d instances of %s run: say which: %s", len(running), of, strings.Join(names, ", "))
	}
	alloc, _, err := c.nomad.Allocations().Info(running[0].ID, query(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading allocation %s: %w", Short(running[0].ID), explain(err))
	}
	return alloc, nil
}

// isAllocationID says whether target can be the beginning of an allocation's id.
func isAllocationID(target string) bool {
	return len(target) >= 2 && strings.Trim(target, "0123456789abcdef-") == ""
}

// runningTask is the wanted task of an allocation, or its only one.
func runningTask(alloc *nomad.Allocation, wanted string) (string, error) {
	var names []string
	for name, state := range alloc.TaskStates {
		if state.State == "running" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	switch {
	case wanted == "" && len(names) == 1:
		return names[0], nil
	case wanted == "" && len(names) > 1:
		return "", fmt.Errorf("allocation %s has several tasks: choose one with --task: %s", Short(alloc.ID), strings.Join(names, ", "))
	}
	for _, name := range names {
		if name == wanted {
			return name, nil
		}
	}
	return "", fmt.Errorf("no task %q of allocation %s runs; running: %s", wanted, Short(alloc.ID), strings.Join(names, ", "))
}

// unknown is the error for a name that means no job and no allocation.
func (c *Client) unknown(ctx context.Context, name string) error {
	stubs, _, err := c.nomad.Jobs().List(query(ctx))
	if err != nil {
		return fmt.Errorf("listing jobs: %w", explain(err))
	}
	var ids []string
	for _, stub := range stubs {
		ids = append(ids, stub.ID)
	}
	sort.Strings(ids)
	if len(ids) == 0 {
		return fmt.Errorf("there is no job %q: the cluster has none at all", name)
	}
	return fmt.Errorf("there is no job %q; there are %s", name, strings.Join(ids, ", "))
}

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/marquee-ads/marquee/platform/jobs"
)

type nodesCmd struct {
	where

	List        nodesListCmd        `cmd:"" help:"Show the machines, their metadata and what runs there."`
	Meta        nodesMetaCmd        `cmd:"" help:"Change what a machine is for, while it runs; instances that do not belong there any more move off."`
	Drain       nodesDrainCmd       `cmd:"" help:"Move everything off a machine."`
	Eligibility nodesEligibilityCmd `cmd:"" help:"Say whether a machine takes instances; on ends a drain."`
}

type nodesListCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run shows the machines.
func (c *nodesListCmd) Run(e *env, n *nodesCmd) error {
	client, _, err := n.reach(e)
	if err != nil {
		return err
	}
	nodes, err := client.Nodes(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(nodes)
	}
	return printNodes(e.stdout, nodes)
}

func printNodes(w io.Writer, nodes []jobs.Node) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tID\tADDRESS\tPOOL\tSTATUS\tTAKES INSTANCES\tRUNS\tMETADATA")
	for _, n := range nodes {
		takes := "yes"
		switch {
		case n.Draining:
			takes = "no, draining"
		case !n.Eligible:
			takes = "no"
		}
		var meta []string
		for _, key := range slices.Sorted(maps.Keys(n.Meta)) {
			meta = append(meta, key+"="+n.Meta[key])
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
			n.Name, jobs.Short(n.ID), n.Address, n.Pool, n.Status, takes, len(n.Instances), strings.Join(meta, " "))
	}
	return table.Flush()
}

type nodesMetaCmd struct {
	Machine string        `arg:"" help:"The machine's name, or the beginning of its id."`
	Changes []string      `arg:"" name:"key=value" help:"What changes, for example marquee_services=true; key= removes it."`
	Timeout time.Duration `default:"10m" help:"Give up waiting after this long."`
}

// Run changes metadata.
func (c *nodesMetaCmd) Run(e *env, n *nodesCmd) error {
	ctx, cancel := e.within(c.Timeout)
	defer cancel()
	changes := make(map[string]*string, len(c.Changes))
	for _, change := range c.Changes {
		key, value, ok := strings.Cut(change, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is no change: want key=value, or key= to remove it", change)
		}
		changes[key] = nil
		if value != "" {
			changes[key] = &value
		}
	}
	client, _, err := n.reach(e)
	if err != nil {
		return err
	}
	if err := client.SetMeta(ctx, c.Machine, changes, newSteps(e.stderr).progress); err != nil {
		return because(ctx, err)
	}
	return nil
}

type nodesDrainCmd struct {
	Machine  string        `arg:"" help:"The machine's name, or the beginning of its id."`
	Deadline time.Duration `default:"10m" help:"Stop what has not left by then."`
	WithData bool          `help:"Also when the machine alone has the data of a job: that job stops, and waits for the machine."`
}

// Validate refuses what Nomad takes for "at once" and for "never".
func (c *nodesDrainCmd) Validate() error {
	if c.Deadline <= 0 {
		return fmt.Errorf("--deadline=%s: want more than 0s", c.Deadline)
	}
	return nil
}

// Run drains a machine.
func (c *nodesDrainCmd) Run(e *env, n *nodesCmd) error {
	// After the deadline instances are stopped, which takes their kill_timeout.
	limit := c.Deadline + 2*time.Minute
	if c.WithData {
		limit += c.Deadline // which what can move has before that
	}
	ctx, cancel := context.WithTimeoutCause(e.ctx, limit, fmt.Errorf("it took longer than %s", limit))
	defer cancel()
	client, _, err := n.reach(e)
	if err != nil {
		return err
	}
	if err := client.Drain(ctx, c.Machine, c.Deadline, c.WithData, newSteps(e.stderr).progress); err != nil {
		return because(ctx, err)
	}
	_, err = fmt.Fprintf(e.stdout, "%s is empty; marquee nodes eligibility %s on has it take instances again.\n", c.Machine, c.Machine)
	return err
}

type nodesEligibilityCmd struct {
	Machine string `arg:"" help:"The machine's name, or the beginning of its id."`
	Takes   string `arg:"" enum:"on,off" help:"on: it takes instances; off: what runs there stays, and nothing more comes."`
}

// Run changes whether a machine takes instances.
func (c *nodesEligibilityCmd) Run(e *env, n *nodesCmd) error {
	client, _, err := n.reach(e)
	if err != nil {
		return err
	}
	return client.SetEligible(e.ctx, c.Machine, c.Takes == "on")
}

package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// Node is a machine that runs jobs.
type Node struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Pool    string `json:"pool"`
	// Status is Nomad's: initializing, ready, disconnected or down.
	Status string `json:"status"`
	// Eligible says whether it takes new instances, Draining that those it has
	// are leaving.
	Eligible bool `json:"eligible"`
	Draining bool `json:"draining"`
	// Meta is its metadata, without what the agent puts there itself.
	Meta map[string]string `json:"meta"`
	// Instances are the allocations that run there, as job/allocation.
	Instances []string `json:"instances"`
}

// Nodes are the machines of the cluster, sorted by name.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	stubs, err := c.nodes(ctx)
	if err != nil {
		return nil, err
	}
	found := []Node{}
	for _, stub := range stubs {
		info, _, err := c.nomad.Nodes().Info(stub.ID, query(ctx))
		if err != nil {
			return nil, fmt.Errorf("reading machine %s: %w", stub.Name, explain(err))
		}
		running, err := c.runningOn(ctx, stub.ID)
		if err != nil {
			return nil, err
		}
		node := Node{
			ID: stub.ID, Name: stub.Name, Address: stub.Address, Pool: stub.NodePool, Status: stub.Status, Draining: stub.Drain,
			Eligible: stub.SchedulingEligibility == nomad.NodeSchedulingEligible, Meta: map[string]string{}, Instances: []string{},
		}
		for key, value := range info.Meta {
			if !strings.HasPrefix(key, "connect.") && value != "" {
				node.Meta[key] = value
			}
		}
		for _, alloc := range running {
			node.Instances = append(node.Instances, alloc.JobID+"/"+Short(alloc.ID))
		}
		sort.Strings(node.Instances)
		found = append(found, node)
	}
	return found, nil
}

func (c *Client) nodes(ctx context.Context) ([]*nomad.NodeListStub, error) {
	stubs, _, err := c.nomad.Nodes().List(query(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing machines: %w", explain(err))
	}
	sort.Slice(stubs, func(a, b int) bool { return stubs[a].Name+stubs[a].ID < stubs[b].Name+stubs[b].ID })
	return stubs, nil
}

// node is the machine of a name, or of an id or the beginning of one. A machine
// that was made anew leaves its predecessor behind, which is down: of several
// the one that is not counts.
func (c *Client) node(ctx context.Context, name string) (*nomad.NodeListStub, error) {
	stubs, err := c.nodes(ctx)
	if err != nil {
		return nil, err
	}
	var matching, up []*nomad.NodeListStub
	var names []string
	for _, stub := range stubs {
		names = append(names, stub.Name)
		if stub.Name == name || len(name) >= 4 && strings.HasPrefix(stub.ID, name) {
			matching = append(matching, stub)
			if stub.Status != nomad.NodeStatusDown {
				up = append(up, stub)
			}
		}
	}
	switch {
	case len(up) == 1:
		return up[0], nil
	case len(matching) == 1:
		return matching[0], nil
	case len(matching) > 1:
		var ids []string
		for _, stub := range matching {
			ids = append(ids, fmt.Sprintf("%s (%s)", Short(stub.ID), stub.Status))
		}
		return nil, fmt.Errorf("several machines are called %s: say which: %s", name, strings.Join(ids, ", "))
	}
	return nil, fmt.Errorf("there is no machine %q; there are %s", name, strings.Join(names, ", "))
}

// runningOn are the allocations of services on a machine that are meant to stay.
func (c *Client) runningOn(ctx context.Context, nodeID string) ([]*nomad.Allocation, error) {
	allocs, _, err := c.nomad.Nodes().Allocations(nodeID, query(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing the allocations of machine %s: %w", Short(nodeID), explain(err))
	}
	return slices.DeleteFunc(allocs, func(a *nomad.Allocation) bool {
		return terminal(a.ClientStatus) || a.DesiredStatus != nomad.AllocDesiredStatusRun
	}), nil
}

// SetMeta changes a machine's metadata while it runs: nil removes a key. It
// lasts over restarts of the agent and wins over the agent's configuration.
// Instances whose jobs do not want the machine any more move off, one at a time,
// each healthy elsewhere before the next: Nomad itself looks at metadata only
// when it places. One that no other machine would take stays, and is an error.
func (c *Client) SetMeta(ctx context.Context, name string, changes map[string]*string, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	node, err := c.node(ctx, name)
	if err != nil {
		return err
	}
	if node.Status != nomad.NodeStatusReady {
		return fmt.Errorf("changing the metadata of machine %s: it is %s, and only its own agent can do it", node.Name, node.Status)
	}
	request := &nomad.NodeMetaApplyRequest{NodeID: node.ID, Meta: changes}
	if _, err := c.nomad.Nodes().Meta().Apply(request, query(ctx)); err != nil {
		return fmt.Errorf("changing the metadata of machine %s: %w", node.Name, explain(err))
	}
	progress(Progress{Message: node.Name + ": changed; waiting until the scheduler knows"})
	here, err := c.waitMeta(ctx, node.ID, changes)
	if err != nil {
		return fmt.Errorf("waiting until the scheduler knows the metadata of machine %s: %w", node.Name, err)
	}
	return c.moveUnwanted(ctx, here, progress)
}

// waitMeta waits until the servers have a machine's new metadata, which its
// agent sends them in batches of up to 10 s.
func (c *Client) waitMeta(ctx context.Context, nodeID string, changes map[string]*string) (*nomad.Node, error) {
	q := query(ctx)
	q.WaitTime = 10 * time.Second
	for {
		node, meta, err := c.nomad.Nodes().Info(nodeID, q)
		if err != nil {
			return nil, explain(err)
		}
		known := true
		for key, want := range changes {
			have, ok := node.Meta[key]
			known = known && (want == nil && !ok || want != nil && have == *want)
		}
		if known {
			return node, nil
		}
		q.WaitIndex = meta.LastIndex
	}
}

// moveUnwanted moves what runs on a machine and would not be placed there any
// more.
func (c *Client) moveUnwanted(ctx context.Context, here *nomad.Node, progress func(Progress)) error {
	running, err := c.runningOn(ctx, here.ID)
	if err != nil {
		return err
	}
	var stuck []error
	for _, alloc := range running {
		job, err := c.job(ctx, alloc.JobID)
		if err != nil {
			return err
		}
		if *job.Type != nomad.JobTypeService || wants(job, alloc.TaskGroup, here) {
			continue
		}
		moved, err := c.move(ctx, job, alloc, here.Name, progress)
		if err != nil {
			return err
		}
		if !moved {
			stuck = append(stuck, fmt.Errorf("%s/%s stays on %s: no other machine that is ready has what its job asks for", alloc.JobID, Short(alloc.ID), here.Name))
		}
	}
	return errors.Join(stuck...)
}

// move has an instance of a service replaced on another machine, and waits until it is
// healthy there. It says whether there is a machine that takes it.
func (c *Client) move(ctx context.Context, job *nomad.Job, alloc *nomad.Allocation, from string, progress func(Progress)) (bool, error) {
	if other, err := c.anotherFor(ctx, job, alloc.TaskGroup, alloc.NodeID); err != nil || !other {
		return false, err
	}
	progress(Progress{Job: alloc.JobID, Message: fmt.Sprintf("moving %s off %s", Short(alloc.ID), from)})
	replacement, err := c.replace(ctx, alloc.ID)
	if err != nil {
		return false, fmt.Errorf("moving %s/%s off %s: %w", alloc.JobID, Short(alloc.ID), from, err)
	}
	progress(Progress{Job: alloc.JobID, Message: fmt.Sprintf("%s became %s", Short(alloc.ID), Short(replacement))})
	return true, nil
}

// anotherFor says whether a machine other than one would take an instance of a
// group, as far as metadata, volumes and ports of its own say.
func (c *Client) anotherFor(ctx context.Context, job *nomad.Job, group, than string) (bool, error) {
	stubs, err := c.nodes(ctx)
	if err != nil {
		return false, err
	}
	for _, stub := range stubs {
		if stub.ID == than || stub.Status != nomad.NodeStatusReady || stub.SchedulingEligibility != nomad.NodeSchedulingEligible {
			continue
		}
		node, _, err := c.nomad.Nodes().Info(stub.ID, query(ctx))
		if err != nil {
			return false, fmt.Errorf("reading machine %s: %w", stub.Name, explain(err))
		}
		if !wants(job, group, node) {
			continue
		}
		if !alonePerMachine(job, group) {
			return true, nil
		}
		running, err := c.runningOn(ctx, stub.ID)
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(running, func(a *nomad.Allocation) bool { return a.JobID == *job.ID && a.TaskGroup == group }) {
			return true, nil
		}
	}
	return false, nil
}

// alonePerMachine says whether a group has ports of its own, of which a machine has one.
func alonePerMachine(job *nomad.Job, groupName string) bool {
	return slices.ContainsFunc(job.TaskGroups, func(group *nomad.TaskGroup) bool {
		return *group.Name == groupName && slices.ContainsFunc(group.Networks, func(n *nomad.NetworkResource) bool { return len(n.ReservedPorts) > 0 })
	})
}

// wants says whether a machine has the metadata and the host volumes that a
// group of a job asks for.
func wants(job *nomad.Job, groupName string, node *nomad.Node) bool {
	constraints := slices.Clone(job.Constraints)
	for _, group := range job.TaskGroups {
		if *group.Name != groupName {
			continue
		}
		constraints = append(constraints, group.Constraints...)
		for _, task := range group.Tasks {
			constraints = append(constraints, task.Constraints...)
		}
		for _, volume := range group.Volumes {
			if _, ok := node.HostVolumes[volume.Source]; volume.Type == "host" && !ok {
				return false
			}
		}
	}
	for _, constraint := range constraints {
		key, ok := strings.CutPrefix(constraint.LTarget, "${meta.")
		if !ok {
			continue
		}
		have, set := node.Meta[strings.TrimSuffix(key, "}")]
		switch constraint.Operand {
		case "", "=", "==", "is":
			ok = set && have == constraint.RTarget
		case "!=", "not":
			ok = have != constraint.RTarget
		case nomad.ConstraintAttributeIsSet:
			ok = set
		case nomad.ConstraintAttributeIsNotSet:
			ok = !set
		}
		if !ok {
			return false
		}
	}
	return true
}

// Drain moves everything off a machine, as each job's migrate block says, and
// returns when nothing runs there any more; the machine then takes nothing until
// SetEligible. What has not left by the deadline is stopped. An instance whose
// data only this machine has cannot move: without withData nothing is drained
// then; with it everything else moves first, because what needs the data becomes
// healthy elsewhere only as long as it is there, and then the instance stops and waits
// for the machine.
func (c *Client) Drain(ctx context.Context, name string, deadline time.Duration, withData bool, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	node, err := c.node(ctx, name)
	if err != nil {
		return err
	}
	running, err := c.runningOn(ctx, node.ID)
	if err != nil {
		return err
	}
	var movable []*nomad.Allocation
	for _, alloc := range running {
		pinned, err := c.pinned(ctx, alloc)
		if err != nil {
			return err
		}
		if pinned && !withData {
			return fmt.Errorf("draining machine %s: only it has the data of %s, which would be away until the machine is back: --with-data does it all the same",
				node.Name, alloc.JobID)
		}
		if !pinned {
			movable = append(movable, alloc)
		}
	}
	if len(movable) < len(running) {
		if err := c.moveOff(ctx, node, movable, deadline, progress); err != nil {
			return fmt.Errorf("draining machine %s, which takes nothing new from now on: %w", node.Name, err)
		}
	}
	if _, err := c.nomad.Nodes().UpdateDrain(node.ID, &nomad.DrainSpec{Deadline: deadline}, false, write(ctx)); err != nil {
		return fmt.Errorf("draining machine %s: %w", node.Name, explain(err))
	}
	return c.waitDrained(ctx, node, progress)
}

// moveOff moves instances off a machine, which takes nothing any more. One that no
// other machine takes stays, and so does what has not moved by the deadline.
func (c *Client) moveOff(ctx context.Context, node *nomad.NodeListStub, instances []*nomad.Allocation, deadline time.Duration, progress func(Progress)) error {
	if _, err := c.nomad.Nodes().ToggleEligibility(node.ID, false, write(ctx)); err != nil {
		return explain(err)
	}
	within, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	for _, alloc := range instances {
		job, err := c.job(ctx, alloc.JobID)
		if err != nil {
			return err
		}
		if *job.Type != nomad.JobTypeService {
			continue
		}
		if _, err := c.move(within, job, alloc, node.Name, progress); err != nil && (within.Err() == nil || ctx.Err() != nil) {
			return err
		}
	}
	return nil
}

// pinned says whether an instance uses data that no other machine has.
func (c *Client) pinned(ctx context.Context, alloc *nomad.Allocation) (bool, error) {
	job, err := c.job(ctx, alloc.JobID)
	if err != nil {
		return false, err
	}
	for _, group := range job.TaskGroups {
		if *group.Name == alloc.TaskGroup && len(group.Volumes) > 0 {
			other, err := c.anotherFor(ctx, job, alloc.TaskGroup, alloc.NodeID)
			return !other, err
		}
	}
	return false, nil
}

func (c *Client) waitDrained(ctx context.Context, node *nomad.NodeListStub, progress func(Progress)) error {
	last := ""
	for {
		info, _, err := c.nomad.Nodes().Info(node.ID, query(ctx))
		if err != nil {
			return fmt.Errorf("following the drain of machine %s: %w", node.Name, explain(err))
		}
		allocs, _, err := c.nomad.Nodes().Allocations(node.ID, query(ctx))
		if err != nil {
			return fmt.Errorf("following the drain of machine %s: %w", node.Name, explain(err))
		}
		var left []string
		for _, alloc := range allocs {
			if alloc.ClientStatus == nomad.AllocClientStatusRunning || alloc.ClientStatus == nomad.AllocClientStatusPending {
				left = append(left, alloc.JobID+"/"+Short(alloc.ID))
			}
		}
		sort.Strings(left)
		if info.DrainStrategy == nil && len(left) == 0 {
			progress(Progress{Message: node.Name + ": nothing runs there any more"})
			return nil
		}
		if now := strings.Join(left, ", "); now != last && now != "" {
			progress(Progress{Message: fmt.Sprintf("%s: still there: %s", node.Name, now)})
			last = now
		}
		if err := pause(ctx, pollInterval); err != nil {
			return fmt.Errorf("machine %s still has %s: %w", node.Name, last, err)
		}
	}
}

// SetEligible says whether a machine takes new instances; what runs there stays.
// It ends a drain.
func (c *Client) SetEligible(ctx context.Context, name string, eligible bool) error {
	node, err := c.node(ctx, name)
	if err != nil {
		return err
	}
	if node.Drain {
		_, err = c.nomad.Nodes().UpdateDrain(node.ID, nil, eligible, write(ctx))
	} else {
		_, err = c.nomad.Nodes().ToggleEligibility(node.ID, eligible, write(ctx))
	}
	if err != nil {
		return fmt.Errorf("changing whether machine %s takes instances: %w", node.Name, explain(err))
	}
	return nil
}

// Package jobs runs the platform's services on Nomad: it turns job files into
// jobs, deploys them and waits until they are healthy, and shows what runs.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// pollInterval is how often a condition is looked at that neither Nomad nor
// Consul can be asked to wait for.
const pollInterval = 150 * time.Millisecond

// Client works on the jobs of one cluster. It is safe for concurrent use.
type Client struct {
	nomad  *nomad.Client
	consul *consul.Client
}

// New returns a Client. The Nomad token must be allowed to submit jobs and read
// logs, the Consul token to read services and nodes.
func New(n *nomad.Client, c *consul.Client) *Client {
	return &Client{nomad: n, consul: c}
}

func query(ctx context.Context) *nomad.QueryOptions {
	return (&nomad.QueryOptions{}).WithContext(ctx)
}

func write(ctx context.Context) *nomad.WriteOptions {
	return (&nomad.WriteOptions{}).WithContext(ctx)
}

// explain turns Nomad's "Unexpected response code: 500 (why)" into why.
func explain(err error) error {
	var unexpected interface {
		Body() string
		StatusCode() int
	}
	if !errors.As(err, &unexpected) || strings.TrimSpace(unexpected.Body()) == "" {
		return err
	}
	why := strings.TrimSpace(unexpected.Body())
	if unexpected.StatusCode() == http.StatusForbidden {
		why += ": the Nomad token may not do this"
	}
	return errors.New(why)
}

// isNotFound says whether Nomad does not know what was asked for.
func isNotFound(err error) bool {
	var unexpected interface{ StatusCode() int }
	return errors.As(err, &unexpected) && unexpected.StatusCode() == 404
}

// pause waits for d or until ctx is done, and returns its error then.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Short is the first eight characters of an id, as Nomad's own commands show it.
func Short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// Stop stops a job and waits until none of its allocations runs. With purge
// Nomad forgets the job. A job that does not exist is stopped.
func (c *Client) Stop(ctx context.Context, id string, purge bool) error {
	allocs, err := c.allocations(ctx, id)
	if err != nil {
		return err
	}
	_, _, err = c.nomad.Jobs().Deregister(id, false, write(ctx))
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("stopping job %s: %w", id, explain(err))
	}
	for _, alloc := range allocs {
		if err := c.waitTerminal(ctx, alloc.ID); err != nil {
			return fmt.Errorf("waiting for allocation %s of job %s to stop: %w", Short(alloc.ID), id, err)
		}
	}
	if !purge {
		return nil
	}
	// Only now: the allocations of a purged job cannot be asked about.
	if _, _, err = c.nomad.Jobs().Deregister(id, true, write(ctx)); err != nil && !isNotFound(err) {
		return fmt.Errorf("purging job %s: %w", id, explain(err))
	}
	return nil
}

func (c *Client) waitTerminal(ctx context.Context, allocID string) error {
	q := query(ctx)
	q.WaitTime = 10 * time.Second
	for {
		alloc, meta, err := c.nomad.Allocations().Info(allocID, q)
		switch {
		case isNotFound(err):
			return nil
		case err != nil:
			return explain(err)
		case terminal(alloc.ClientStatus):
			return nil
		}
		q.WaitIndex = meta.LastIndex
	}
}

func terminal(clientStatus string) bool {
	switch clientStatus {
	case nomad.AllocClientStatusComplete, nomad.AllocClientStatusFailed, nomad.AllocClientStatusLost:
		return true
	}
	return false
}

// allocations of a job that Nomad still knows; none when there is no such job.
func (c *Client) allocations(ctx context.Context, id string) ([]*nomad.AllocationListStub, error) {
	allocs, _, err := c.nomad.Jobs().Allocations(id, false, query(ctx))
	if err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("listing the allocations of job %s: %w", id, explain(err))
	}
	return allocs, nil
}

// Restart replaces the instances of a job one at a time: each leaves discovery,
// drains and stops as in a deployment, and the next follows only when its
// replacement is healthy. progress is told each step and may be nil.
func (c *Client) Restart(ctx context.Context, id string, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	if _, err := c.job(ctx, id); err != nil {
		return err
	}
	service, err := c.Service(ctx, id)
	if err != nil {
		return err
	}
	total := 0
	for _, instance := range service.Instances {
		if instance.AllocID != "" && !terminal(instance.State) {
			total++
		}
	}
	if total == 0 {
		return fmt.Errorf("restarting %s: no instance of it runs under Nomad", id)
	}
	done := 0
	for _, instance := range service.Instances {
		if instance.AllocID == "" || terminal(instance.State) {
			continue
		}
		progress(Progress{Job: id, Healthy: done, Desired: total, Message: "replacing " + Short(instance.AllocID)})
		replacement, err := c.replace(ctx, instance.AllocID)
		if err != nil {
			return fmt.Errorf("restarting %s: replacing allocation %s: %w", id, Short(instance.AllocID), err)
		}
		done++
		progress(Progress{Job: id, Healthy: done, Desired: total, Message: Short(instance.AllocID) + " became " + Short(replacement)})
	}
	return nil
}

// replace stops one allocation and waits until the one that follows it is
// healthy; it returns that one's id.
func (c *Client) replace(ctx context.Context, allocID string) (string, error) {
	if _, err := c.nomad.Allocations().Stop(&nomad.Allocation{ID: allocID}, query(ctx)); err != nil {
		return "", explain(err)
	}
	for {
		alloc, _, err := c.nomad.Allocations().Info(allocID, query(ctx))
		if err != nil {
			return "", explain(err)
		}
		// The replacement may itself have failed and been replaced.
		for alloc.NextAllocation != "" {
			if alloc, _, err = c.nomad.Allocations().Info(alloc.NextAllocation, query(ctx)); err != nil {
				return "", explain(err)
			}
		}
		if alloc.ID != allocID && alloc.ClientStatus == nomad.AllocClientStatusRunning {
			service, err := c.Service(ctx, alloc.JobID)
			if err != nil {
				return "", err
			}
			if i, ok := service.Instance(alloc.ID); ok && i.Health == consul.HealthPassing {
				return alloc.ID, nil
			}
		}
		if err := pause(ctx, pollInterval); err != nil {
			return "", fmt.Errorf("no healthy replacement: %w", err)
		}
	}
}

// ManagedMeta is the key of a job's metadata that marks it, with the value
// "true", as one of nomad-jobs/. Others are nobody's business here.
const ManagedMeta = "marquee_managed"

// Managed are the ids of the jobs that are marked so and not stopped, sorted.
func (c *Client) Managed(ctx context.Context) ([]string, error) {
	options := &nomad.JobListOptions{Fields: &nomad.JobListFields{Meta: true}}
	stubs, _, err := c.nomad.Jobs().ListOptions(options, query(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", explain(err))
	}
	ids := []string{}
	for _, stub := range stubs {
		if stub.Meta[ManagedMeta] == "true" && !stub.Stop {
			ids = append(ids, stub.ID)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

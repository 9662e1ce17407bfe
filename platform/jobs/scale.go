package jobs

import (
	"context"
	"fmt"

	nomad "github.com/hashicorp/nomad/api"
)

// Scale makes a job run count instances and returns when they are all healthy;
// the next deployment brings the job file's number back. A job whose file has no
// scaling block, and a number outside of that block's bounds, are refused.
// progress is called from this goroutine and may be nil.
func (c *Client) Scale(ctx context.Context, id string, count int, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	job, err := c.job(ctx, id)
	if err != nil {
		return err
	}
	group, err := scalable(job, count)
	if err != nil {
		return fmt.Errorf("scaling %s to %d: %w", id, count, err)
	}
	if *group.Count == count {
		progress(Progress{Job: id, Desired: count, Message: "that many are wanted already"})
	} else {
		message := fmt.Sprintf("from %d to %d by marquee", *group.Count, count)
		response, _, err := c.nomad.Jobs().Scale(id, *group.Name, &count, message, false, nil, write(ctx))
		if err != nil {
			return fmt.Errorf("scaling %s to %d: %w", id, count, explain(err))
		}
		progress(Progress{Job: id, Desired: count, Message: fmt.Sprintf("scaling from %d to %d", *group.Count, count)})
		if err := c.waitPlaced(ctx, id, response.EvalID, progress); err != nil {
			return err
		}
		deployment, _, err := c.nomad.Jobs().LatestDeployment(id, query(ctx))
		if err != nil {
			return fmt.Errorf("finding the deployment of %s: %w", id, explain(err))
		}
		if deployment != nil && deployment.JobSpecModifyIndex == response.JobModifyIndex {
			if err := c.waitDeployed(ctx, deployment.ID, progress); err != nil {
				return err
			}
		}
	}
	service, err := c.WaitReady(ctx, id)
	if err != nil {
		return err
	}
	progress(Progress{Job: id, Healthy: service.Healthy, Desired: service.Desired, Message: "healthy"})
	return nil
}

// scalable is the group of a job that may run count instances.
func scalable(job *nomad.Job, count int) (*nomad.TaskGroup, error) {
	if *job.Stop {
		return nil, fmt.Errorf("the job is stopped: deploy it first")
	}
	var found *nomad.TaskGroup
	for _, group := range job.TaskGroups {
		if group.Scaling == nil {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("the job has several groups that scale; change their counts in its job file and deploy it")
		}
		found = group
	}
	if found == nil {
		return nil, fmt.Errorf("its job file has no scaling block: its number of instances is part of how it works")
	}
	if least := found.Scaling.Min; least != nil && int64(count) < *least {
		return nil, fmt.Errorf("the job file's scaling block allows no fewer than %d", *least)
	}
	if most := found.Scaling.Max; most != nil && *most > 0 && int64(count) > *most {
		return nil, fmt.Errorf("the job file's scaling block allows no more than %d", *most)
	}
	return found, nil
}

// job is a job that Nomad knows; there being none is an error that names those
// there are.
func (c *Client) job(ctx context.Context, id string) (*nomad.Job, error) {
	job, _, err := c.nomad.Jobs().Info(id, query(ctx))
	switch {
	case isNotFound(err):
		return nil, c.unknown(ctx, id)
	case err != nil:
		return nil, fmt.Errorf("reading job %s: %w", id, explain(err))
	}
	return job, nil
}

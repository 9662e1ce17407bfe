package jobs

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// placementGrace is how long a job may wait for a machine before Deploy gives
// up: long enough for a client that has only just joined to announce its
// drivers and networks.
const placementGrace = 15 * time.Second

// unchangedTimeout bounds how long Deploy waits for a job that is registered
// already and not healthy: nobody but Nomad is doing anything about it.
const unchangedTimeout = 2 * time.Minute

// mostChanges is how many differences Deploy tells one by one.
const mostChanges = 8

// quietTime is how long a deployment may go on without a word of progress.
const quietTime = 10 * time.Second

// Progress is a step of a deployment.
type Progress struct {
	Job string
	// Healthy of Desired instances of the new version are healthy.
	Healthy, Desired int
	// Message says what happened, for people.
	Message string
}

// Deployed is what a successful deployment did.
type Deployed struct {
	Job string
	// Unchanged is true when the cluster already ran exactly this job.
	Unchanged bool
	// Version is the job's version in Nomad.
	Version uint64
}

// FailedError says why a deployment did not succeed.
type FailedError struct {
	Job string
	// Reason is Nomad's description, or why no machine takes the job.
	Reason string
	// Reverted is true when Nomad went back to the version before.
	Reverted bool
	// Evidence is what the failing allocations' events and logs said last.
	Evidence string
}

// Error is the reason, then the evidence on lines of their own.
func (e *FailedError) Error() string {
	text := fmt.Sprintf("deploying %s: %s", e.Job, e.Reason)
	if e.Evidence != "" {
		text += "\n" + e.Evidence
	}
	return text
}

// Deploy makes the cluster run the job and returns when all of its instances
// are healthy. Nothing is registered when the cluster already runs exactly this
// job. A deployment that fails is a *FailedError; other errors are the
// cluster's. progress is called from this goroutine on every change and may be
// nil. How long it may take is up to ctx.
func (c *Client) Deploy(ctx context.Context, job *Job, progress func(Progress)) (Deployed, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	done := Deployed{Job: job.ID()}
	plan, err := c.Plan(ctx, job)
	if err != nil {
		return done, err
	}
	if !plan.Changed {
		again, err := c.resume(ctx, job.ID(), progress)
		if err != nil {
			return done, err
		}
		if !again {
			done.Unchanged = true
			ctx, cancel := context.WithTimeout(ctx, unchangedTimeout)
			defer cancel()
			return c.finish(ctx, done, progress)
		}
	}

	told := plan.Changes
	if more := len(told) - mostChanges; more > 0 {
		told = append(slices.Clone(told[:mostChanges]), fmt.Sprintf("and %d more", more))
	}
	if plan.Warnings != "" {
		told = append(slices.Clone(told), "Nomad warns: "+plan.Warnings)
	}
	for _, change := range told {
		progress(Progress{Job: job.ID(), Message: change})
	}
	response, _, err := c.nomad.Jobs().RegisterOpts(job.Spec, &nomad.RegisterOptions{
		Submission: &nomad.JobSubmission{Source: job.source, Format: "hcl2", Variables: job.variables},
	}, write(ctx))
	if err != nil {
		return done, fmt.Errorf("registering job %s: %w", job.ID(), explain(err))
	}
	if err := c.waitPlaced(ctx, job.ID(), response.EvalID, progress); err != nil {
		return done, err
	}
	deployment, _, err := c.nomad.Jobs().LatestDeployment(job.ID(), query(ctx))
	if err != nil {
		return done, fmt.Errorf("finding the deployment of %s: %w", job.ID(), explain(err))
	}
	// A change that replaces nothing, such as fewer instances, has none.
	if deployment != nil && deployment.JobSpecModifyIndex == response.JobModifyIndex {
		if err := c.waitDeployed(ctx, deployment.ID, progress); err != nil {
			return done, err
		}
	}
	return c.finish(ctx, done, progress)
}

// resume goes on with what an earlier deployment of the same job left: it
// follows one that is still under way. Of one that failed Nomad starts nothing
// again, not even when the same job is registered once more: when nothing of it
// is healthy the job is forgotten, and again says that it has to be registered.
func (c *Client) resume(ctx context.Context, id string, progress func(Progress)) (again bool, err error) {
	service, err := c.Service(ctx, id)
	if err != nil || service.Ready() {
		return false, err
	}
	deployment, _, err := c.nomad.Jobs().LatestDeployment(id, query(ctx))
	switch {
	case err != nil:
		return false, fmt.Errorf("finding the deployment of %s: %w", id, explain(err))
	case deployment == nil:
		return false, nil
	case deployment.Status == nomad.DeploymentStatusRunning:
		return false, c.waitDeployed(ctx, deployment.ID, progress)
	case deployment.Status == nomad.DeploymentStatusFailed && service.Healthy == 0:
		progress(Progress{Job: id, Desired: service.Desired, Message: "its last deployment failed; trying again"})
		return true, c.Stop(ctx, id, true)
	}
	return false, nil
}

// finish waits until the service is whole, and completes the answer.
func (c *Client) finish(ctx context.Context, done Deployed, progress func(Progress)) (Deployed, error) {
	service, err := c.WaitReady(ctx, done.Job)
	if err != nil {
		return done, err
	}
	done.Version = service.JobVersion
	progress(Progress{Job: done.Job, Healthy: service.Healthy, Desired: service.Desired, Message: "healthy"})
	return done, nil
}

// WaitReady waits until every instance of a job that is wanted runs its newest
// version and is healthy in Consul.
func (c *Client) WaitReady(ctx context.Context, id string) (*Service, error) {
	var last *Service
	for {
		service, err := c.Service(ctx, id)
		switch {
		case err == nil:
			last = service
		case ctx.Err() == nil || last == nil:
			return nil, err
		}
		if last.Ready() {
			return last, nil
		}
		if err := pause(ctx, pollInterval); err != nil {
			// ctx is over, and what was wrong is still worth a moment.
			looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return nil, &FailedError{
				Job: id, Reason: fmt.Sprintf("%d of %d instances are healthy: %v", last.Healthy, last.Desired, err),
				Evidence: c.evidence(looking, last.unhealthy()),
			}
		}
	}
}

func (s *Service) unhealthy() []string {
	var ids []string
	for _, i := range s.Instances {
		if i.AllocID != "" && i.Health != "passing" {
			ids = append(ids, i.AllocID)
		}
	}
	return ids
}

// waitPlaced waits until the scheduler has found a machine for everything.
func (c *Client) waitPlaced(ctx context.Context, id, evalID string, progress func(Progress)) error {
	q := query(ctx)
	q.WaitTime = 5 * time.Second
	var blockedSince time.Time
	for {
		eval, meta, err := c.nomad.Evaluations().Info(evalID, q)
		if err != nil {
			return fmt.Errorf("following the evaluation of %s: %w", id, explain(err))
		}
		switch eval.Status {
		case nomad.EvalStatusFailed, nomad.EvalStatusCancelled:
			return &FailedError{Job: id, Reason: "the scheduler gave up: " + eval.StatusDescription}
		case nomad.EvalStatusComplete:
			if eval.BlockedEval == "" && len(eval.FailedTGAllocs) == 0 {
				return nil
			}
		}
		reasons := strings.Join(unplaceable(eval.FailedTGAllocs), "; ")
		switch {
		case eval.Status == nomad.EvalStatusComplete && eval.BlockedEval != "":
			// The blocked evaluation goes on by itself once there is room.
			if blockedSince.IsZero() {
				blockedSince = time.Now()
			}
			progress(Progress{Job: id, Message: "waits for a place: " + reasons})
			evalID, q.WaitIndex = eval.BlockedEval, 0
		case eval.Status == "blocked":
			if time.Since(blockedSince) > placementGrace {
				return &FailedError{Job: id, Reason: "no place was found within " + placementGrace.String() + ": " + reasons}
			}
			q.WaitIndex, q.WaitTime = meta.LastIndex, time.Second
		default:
			q.WaitIndex = meta.LastIndex
		}
	}
}

// waitDeployed follows a deployment to its end.
func (c *Client) waitDeployed(ctx context.Context, deploymentID string, progress func(Progress)) error {
	q := query(ctx)
	q.WaitTime = 2 * time.Second
	told := make(map[string]bool)
	var last Progress
	lastTold := time.Now()
	for {
		d, meta, err := c.nomad.Deployments().Info(deploymentID, q)
		if err != nil {
			return fmt.Errorf("following deployment %s: %w", Short(deploymentID), explain(err))
		}
		now := Progress{Job: d.JobID, Message: d.StatusDescription}
		for _, group := range d.TaskGroups {
			now.Healthy += group.HealthyAllocs
			now.Desired += group.DesiredTotal
		}
		if now != last {
			progress(now)
			last, lastTold = now, time.Now()
		} else if time.Since(lastTold) > quietTime {
			now.Message = "still waiting: " + c.pending(ctx, d.JobID)
			progress(now)
			lastTold = time.Now()
		}
		switch d.Status {
		case nomad.DeploymentStatusSuccessful:
			return nil
		case nomad.DeploymentStatusFailed, nomad.DeploymentStatusCancelled:
			return &FailedError{
				Job: d.JobID, Reason: d.StatusDescription,
				Reverted: strings.Contains(d.StatusDescription, "rolling back"),
				Evidence: c.evidence(ctx, c.troubled(ctx, deploymentID)),
			}
		}
		for _, id := range c.troubled(ctx, deploymentID) {
			if !told[id] {
				told[id] = true
				progress(Progress{
					Job: d.JobID, Healthy: now.Healthy, Desired: now.Desired,
					Message: "allocation " + Short(id) + " has trouble: " + c.lastEvent(ctx, id),
				})
			}
		}
		q.WaitIndex = meta.LastIndex
	}
}

// pending says what the instances that are not healthy yet say of themselves.
func (c *Client) pending(ctx context.Context, id string) string {
	service, err := c.Service(ctx, id)
	if err != nil {
		return err.Error()
	}
	for _, i := range service.Instances {
		if i.Health != "passing" {
			says, _, _ := strings.Cut(i.Output, "\n")
			return strings.TrimRight(fmt.Sprintf("%s is %s %s: %s", Short(i.AllocID), i.State, i.Health, says), ": ")
		}
	}
	return "all are passing"
}

// troubled are the allocations of a deployment that are unhealthy, have failed,
// or had a task that ended and was started again. Trouble in looking for
// trouble is none: the caller is about to report something better.
func (c *Client) troubled(ctx context.Context, deploymentID string) []string {
	allocs, _, err := c.nomad.Deployments().Allocations(deploymentID, query(ctx))
	if err != nil {
		return nil
	}
	var ids []string
	for _, alloc := range allocs {
		unhealthy := alloc.DeploymentStatus != nil && alloc.DeploymentStatus.Healthy != nil && !*alloc.DeploymentStatus.Healthy
		for _, task := range alloc.TaskStates {
			unhealthy = unhealthy || task.Failed || task.Restarts > 0
		}
		if unhealthy || alloc.ClientStatus == nomad.AllocClientStatusFailed {
			ids = append(ids, alloc.ID)
		}
	}
	sort.Strings(ids)
	return ids
}

// evidence is what the events and logs of up to three allocations said last.
func (c *Client) evidence(ctx context.Context, allocIDs []string) string {
	const most = 3
	var text strings.Builder
	for _, id := range allocIDs[:min(most, len(allocIDs))] {
		alloc, _, err := c.nomad.Allocations().Info(id, query(ctx))
		if err != nil {
			continue
		}
		fmt.Fprintf(&text, "allocation %s on %s (%s):\n", Short(id), alloc.NodeName, alloc.ClientStatus)
		for _, event := range lastEvents(alloc, 8) {
			fmt.Fprintf(&text, "  %s\n", event)
		}
		logs, err := c.allocLogs(ctx, id, 15)
		if err != nil {
			fmt.Fprintf(&text, "  %v\n", err)
		}
		for line := range strings.Lines(logs) {
			text.WriteString("  " + line)
		}
	}
	return strings.TrimRight(text.String(), "\n")
}

func (c *Client) lastEvent(ctx context.Context, allocID string) string {
	alloc, _, err := c.nomad.Allocations().Info(allocID, query(ctx))
	if err != nil {
		return explain(err).Error()
	}
	events := lastEvents(alloc, 1)
	if len(events) == 0 {
		return alloc.ClientDescription
	}
	return events[0]
}

// lastEvents are the newest n events of an allocation's tasks, oldest first.
func lastEvents(alloc *nomad.Allocation, n int) []string {
	type event struct {
		at   int64
		text string
	}
	var events []event
	for name, task := range alloc.TaskStates {
		for _, e := range task.Events {
			message := e.DisplayMessage
			if message == "" {
				message = e.Message
			}
			events = append(events, event{e.Time, fmt.Sprintf("%s %s: %s: %s",
				time.Unix(0, e.Time).UTC().Format("15:04:05.000"), name, e.Type, message)})
		}
	}
	sort.Slice(events, func(a, b int) bool { return events[a].at < events[b].at })
	events = events[max(0, len(events)-n):]
	texts := make([]string, len(events))
	for i, e := range events {
		texts[i] = e.text
	}
	return texts
}

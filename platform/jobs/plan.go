package jobs

import (
	"context"
	"fmt"
	"sort"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// Plan is what deploying a job would do.
type Plan struct {
	// Changed is false when the cluster already runs exactly this job.
	Changed bool
	// Changes are the differences, one a line, for people.
	Changes []string
	// Unplaceable says, for each group that would find no place, why.
	Unplaceable []string
	// Warnings are Nomad's, one text.
	Warnings string
}

// Plan asks Nomad what deploying the job would do; it changes nothing.
func (c *Client) Plan(ctx context.Context, job *Job) (*Plan, error) {
	response, _, err := c.nomad.Jobs().PlanOpts(job.Spec, &nomad.PlanOptions{Diff: true}, write(ctx))
	if err != nil {
		return nil, fmt.Errorf("planning job %s: %w", job.ID(), explain(err))
	}
	plan := &Plan{Unplaceable: unplaceable(response.FailedTGAllocs), Warnings: strings.TrimSpace(response.Warnings)}
	if response.Diff != nil && response.Diff.Type != "None" {
		plan.Changes = changes(response.Diff)
		// Of a job with a scaling block Nomad always says that it is edited, and
		// names no difference when there is none.
		plan.Changed = len(plan.Changes) > 0
	}
	return plan, nil
}

// Programs are the commands that tasks run and the sources of their artifacts,
// of every job and of all its versions that Nomad remembers and may go back to.
func (c *Client) Programs(ctx context.Context) ([]string, error) {
	stubs, _, err := c.nomad.Jobs().List(query(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", explain(err))
	}
	var programs []string
	for _, stub := range stubs {
		versions, _, _, err := c.nomad.Jobs().Versions(stub.ID, false, query(ctx))
		if err != nil && !isNotFound(err) {
			return nil, fmt.Errorf("reading the versions of job %s: %w", stub.ID, explain(err))
		}
		for _, version := range versions {
			for _, group := range version.TaskGroups {
				for _, task := range group.Tasks {
					if command, ok := task.Config["command"].(string); ok {
						programs = append(programs, command)
					}
					for _, artifact := range task.Artifacts {
						programs = append(programs, *artifact.GetterSource)
					}
				}
			}
		}
	}
	return programs, nil
}

// unplaceable explains, group by group, why no machine takes an allocation.
func unplaceable(failed map[string]*nomad.AllocationMetric) []string {
	var reasons []string
	for group, metric := range failed {
		var why []string
		if metric.NodesEvaluated == 0 {
			why = append(why, "no machine is ready in the job's datacenters")
		}
		for constraint, n := range metric.ConstraintFiltered {
			why = append(why, fmt.Sprintf("%s (%d machines)", constraint, n))
		}
		for dimension, n := range metric.DimensionExhausted {
			why = append(why, fmt.Sprintf("%s exhausted (%d machines)", dimension, n))
		}
		sort.Strings(why)
		reasons = append(reasons, fmt.Sprintf("group %s: %d allocations find no place: %s",
			group, metric.CoalescedFailures+1, strings.Join(why, ", ")))
	}
	sort.Strings(reasons)
	return reasons
}

// changes flattens a diff into lines such as
// `account/accountd: Config: command "a" -> "b"`.
func changes(diff *nomad.JobDiff) []string {
	var lines []string
	add := func(where string, fields []*nomad.FieldDiff, objects []*nomad.ObjectDiff) {
		lines = append(lines, fieldChanges(where, fields)...)
		lines = append(lines, objectChanges(where, objects)...)
	}
	if diff.Type == "Added" {
		return []string{"the job is new"}
	}
	add("job", diff.Fields, diff.Objects)
	for _, group := range diff.TaskGroups {
		if group.Type == "Added" || group.Type == "Deleted" {
			lines = append(lines, fmt.Sprintf("group %s: %s", group.Name, strings.ToLower(group.Type)))
			continue
		}
		add(group.Name, group.Fields, group.Objects)
		for _, task := range group.Tasks {
			where := group.Name + "/" + task.Name
			if task.Type == "Added" || task.Type == "Deleted" {
				lines = append(lines, fmt.Sprintf("%s: %s", where, strings.ToLower(task.Type)))
				continue
			}
			add(where, task.Fields, task.Objects)
		}
	}
	return lines
}

func objectChanges(where string, objects []*nomad.ObjectDiff) []string {
	var lines []string
	for _, object := range objects {
		if object.Type == "None" {
			continue
		}
		inner := where + ": " + object.Name
		lines = append(lines, fieldChanges(inner, object.Fields)...)
		lines = append(lines, objectChanges(inner, object.Objects)...)
	}
	return lines
}

func fieldChanges(where string, fields []*nomad.FieldDiff) []string {
	var lines []string
	for _, field := range fields {
		if field.Type != "None" {
			lines = append(lines, fmt.Sprintf("%s: %s %q -> %q", where, field.Name, field.Old, field.New))
		}
	}
	return lines
}

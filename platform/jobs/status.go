package jobs

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// Service is a service as it runs: the instances Nomad runs and those that
// registered themselves.
type Service struct {
	Name string `json:"name"`
	// Status is Nomad's for the job: pending, running or dead; empty for a
	// service that no job runs.
	Status string `json:"status,omitempty"`
	// JobVersion is the job's version in Nomad.
	JobVersion uint64 `json:"job_version"`
	// Desired is how many instances the job asks for.
	Desired int `json:"desired"`
	// Healthy is how many instances, by hand or by Nomad, callers find.
	Healthy   int        `json:"healthy"`
	Instances []Instance `json:"instances"`
}

// Instance is one running process.
type Instance struct {
	// ID is the instance's Consul service id; empty while it is not registered.
	ID string `json:"id,omitempty"`
	// AllocID is its allocation; empty for one that was started by hand.
	AllocID string `json:"alloc_id,omitempty"`
	// Node is the machine it runs on.
	Node string `json:"node"`
	// State is Nomad's: pending, running, failed, lost, unknown; "by hand" for
	// one that no job runs.
	State string `json:"state"`
	// JobVersion is the version of the job it was started from.
	JobVersion uint64 `json:"job_version"`
	// Health is the worst of its checks in Consul: passing, warning, critical;
	// empty while it is not registered.
	Health string `json:"health,omitempty"`
	// Output is what the worst check said last.
	Output string `json:"output,omitempty"`
	// Address is where callers reach it, host:port.
	Address string `json:"address,omitempty"`
	// Release is the version of its binary.
	Release string `json:"release,omitempty"`
	// Meta is its metadata in Consul.
	Meta map[string]string `json:"meta,omitempty"`
	// Started is when its tasks began; zero when unknown.
	Started time.Time `json:"started,omitzero"`
	// Restarts is how often its tasks were started again after they ended.
	Restarts uint64 `json:"restarts"`
}

// Instance returns the instance of an allocation.
func (s *Service) Instance(allocID string) (Instance, bool) {
	i := slices.IndexFunc(s.Instances, func(i Instance) bool { return allocID != "" && i.AllocID == allocID })
	if i < 0 {
		return Instance{}, false
	}
	return s.Instances[i], true
}

// Ready says whether every instance that is wanted runs the newest version of
// the job and is healthy.
func (s *Service) Ready() bool {
	ready := 0
	for _, i := range s.Instances {
		if i.AllocID != "" && i.State == nomad.AllocClientStatusRunning && i.JobVersion == s.JobVersion && i.Health == consul.HealthPassing {
			ready++
		}
	}
	return s.Status == "running" && ready >= s.Desired
}

// Status is all services: those with a job in Nomad, and those without one that
// registered themselves in the mesh. It is sorted by name.
func (c *Client) Status(ctx context.Context) ([]Service, error) {
	stubs, _, err := c.nomad.Jobs().List(query(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", explain(err))
	}
	registered, _, err := c.consul.Catalog().Services((&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	names := make([]string, 0, len(stubs))
	for _, stub := range stubs {
		names = append(names, stub.ID)
	}
	for name, tags := range registered {
		inEnvironment := slices.ContainsFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "env-") })
		if inEnvironment && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	services := make([]Service, 0, len(names))
	for _, name := range names {
		service, err := c.Service(ctx, name)
		if err != nil {
			return nil, err
		}
		services = append(services, *service)
	}
	return services, nil
}

// Service is one service. Its name is the job's id and the Consul service's
// name. A service that neither Nomad nor Consul knows is an error.
func (c *Client) Service(ctx context.Context, name string) (*Service, error) {
	service := &Service{Name: name, Instances: []Instance{}}
	job, _, err := c.nomad.Jobs().Info(name, query(ctx))
	switch {
	case isNotFound(err):
		job = nil
	case err != nil:
		return nil, fmt.Errorf("reading job %s: %w", name, explain(err))
	default:
		service.Status, service.JobVersion = *job.Status, *job.Version
		for _, group := range job.TaskGroups {
			if !*job.Stop {
				service.Desired += *group.Count
			}
		}
	}

	allocs, err := c.allocations(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, alloc := range allocs {
		// Those that ended and that Nomad wants ended are history.
		if terminal(alloc.ClientStatus) && (alloc.DesiredStatus != nomad.AllocDesiredStatusRun || alloc.NextAllocation != "") {
			continue
		}
		service.Instances = append(service.Instances, fromAllocation(alloc))
	}

	entries, _, err := c.consul.Health().Service(name, "", false, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading the health of %s: %w", name, err)
	}
	if job == nil && len(entries) == 0 {
		return nil, fmt.Errorf("there is no service %q", name)
	}
	for _, entry := range entries {
		service.merge(entry)
	}
	for _, instance := range service.Instances {
		if instance.Health == consul.HealthPassing {
			service.Healthy++
		}
	}
	sort.Slice(service.Instances, func(a, b int) bool {
		x, y := service.Instances[a], service.Instances[b]
		return x.AllocID+x.ID < y.AllocID+y.ID
	})
	return service, nil
}

func fromAllocation(alloc *nomad.AllocationListStub) Instance {
	instance := Instance{
		AllocID: alloc.ID, Node: alloc.NodeName, State: alloc.ClientStatus, JobVersion: alloc.JobVersion,
	}
	for _, task := range alloc.TaskStates {
		instance.Restarts += task.Restarts
		if task.StartedAt.After(instance.Started) {
			instance.Started = task.StartedAt
		}
	}
	return instance
}

// merge adds what Consul knows to the instance Nomad knows, or adds the
// instance when Nomad does not know it.
func (s *Service) merge(entry *consul.ServiceEntry) {
	i := slices.IndexFunc(s.Instances, func(i Instance) bool {
		return i.AllocID != "" && strings.HasPrefix(entry.Service.ID, "_nomad-task-"+i.AllocID)
	})
	if i < 0 {
		state := "by hand"
		if strings.HasPrefix(entry.Service.ID, "_nomad-") {
			state = "gone" // its allocation has ended; Nomad is about to deregister it
		}
		s.Instances = append(s.Instances, Instance{Node: entry.Node.Node, State: state})
		i = len(s.Instances) - 1
	}
	instance := &s.Instances[i]
	instance.ID = entry.Service.ID
	instance.Meta = entry.Service.Meta
	instance.Release = entry.Service.Meta["version"]
	host := entry.Service.Address
	if host == "" {
		host = entry.Node.Address
	}
	instance.Address = fmt.Sprintf("%s:%d", host, entry.Service.Port)
	instance.Health = entry.Checks.AggregatedStatus()
	for _, check := range entry.Checks {
		if check.Status == instance.Health && instance.Health != consul.HealthPassing {
			instance.Output = strings.TrimSpace(check.Output)
		}
	}
}

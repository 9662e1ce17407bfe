package jobs

import (
	"context"
	"fmt"
	"slices"
	"sort"

	nomad "github.com/hashicorp/nomad/api"
)

// Usage is what one task of a running instance uses, as its machine measured it
// within the last seconds, and what it was given.
type Usage struct {
	AllocID string `json:"alloc_id"`
	Node    string `json:"node"`
	Task    string `json:"task"`
	// CPU is in MHz: what it took in the last interval, and its share when the
	// machine is busy.
	CPU      float64 `json:"cpu_mhz"`
	GivenCPU int     `json:"given_cpu_mhz"`
	// Memory is in bytes: anonymous memory in use now, the most so far where the
	// driver counts it (0 where not), and the limit.
	Memory      uint64 `json:"memory_bytes"`
	MostMemory  uint64 `json:"most_memory_bytes"`
	GivenMemory uint64 `json:"given_memory_bytes"`
}

// Usage measures all running tasks of a job.
func (c *Client) Usage(ctx context.Context, id string) ([]Usage, error) {
	allocs, err := c.allocations(ctx, id)
	if err != nil {
		return nil, err
	}
	usages := []Usage{}
	for _, stub := range allocs {
		if stub.ClientStatus != nomad.AllocClientStatusRunning {
			continue
		}
		of, err := c.allocUsage(ctx, stub)
		if err != nil {
			return nil, err
		}
		usages = append(usages, of...)
	}
	sort.Slice(usages, func(a, b int) bool {
		return usages[a].AllocID+usages[a].Task < usages[b].AllocID+usages[b].Task
	})
	return usages, nil
}

func (c *Client) allocUsage(ctx context.Context, stub *nomad.AllocationListStub) ([]Usage, error) {
	alloc, _, err := c.nomad.Allocations().Info(stub.ID, query(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading allocation %s: %w", Short(stub.ID), explain(err))
	}
	stats, err := c.nomad.Allocations().Stats(alloc, query(ctx))
	if err != nil {
		return nil, fmt.Errorf("measuring allocation %s: %w", Short(stub.ID), explain(err))
	}
	var usages []Usage
	for name, task := range stats.Tasks {
		usage := Usage{AllocID: alloc.ID, Node: alloc.NodeName, Task: name}
		if given := alloc.AllocatedResources.Tasks[name]; given != nil {
			usage.GivenCPU = int(given.Cpu.CpuShares)
			usage.GivenMemory = uint64(given.Memory.MemoryMB) << 20
		}
		if task.ResourceUsage != nil {
			usage.CPU = task.ResourceUsage.CpuStats.TotalTicks
			memory := task.ResourceUsage.MemoryStats
			usage.Memory, usage.MostMemory = memory.RSS, memory.MaxUsage
			if usage.Memory == 0 && slices.Contains(memory.Measured, "Usage") {
				usage.Memory = memory.Usage
			}
		}
		usages = append(usages, usage)
	}
	return usages, nil
}

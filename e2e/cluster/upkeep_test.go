package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/jobs"
)

const (
	// drainBound is how long a machine may take to be empty. Each instance takes
	// about 10 s: its replacement is healthy first, and it goes with its calls done.
	drainBound = 90 * time.Second
	// agentBound is how long an agent may take to be back.
	agentBound = 30 * time.Second
)

// Everything moves off a machine, and it takes instances again later.
func testDrain(t *testing.T, ctx context.Context, c *cluster) {
	victim := c.victim(t, ctx)
	c.underLoad(t, ctx, "a client machine is drained", func() (time.Duration, time.Duration) {
		began := time.Now()
		draining, cancel := context.WithTimeout(ctx, drainBound)
		defer cancel()
		require.NoError(t, c.Jobs().Drain(draining, victim.Name(), time.Minute, false, progress(t)))
		c.without(t, ctx, victim.Name(), drainBound)
		return 0, time.Since(began)
	})
	require.NoError(t, c.Jobs().SetEligible(ctx, victim.Name(), true))
}

func progress(t *testing.T) func(jobs.Progress) {
	return func(p jobs.Progress) { t.Log(p.Job, p.Message) }
}

// The agents of every client are stopped and started, one machine after the
// other, as an upgrade does. What they run lives on.
func testUpgradeAgents(t *testing.T, ctx context.Context, c *cluster) {
	c.underLoad(t, ctx, "all clients' agents are restarted", func() (time.Duration, time.Duration) {
		began, tasks := time.Now(), 0
		for _, n := range c.clients() {
			before := c.tasks(t, ctx, n)
			down := time.Now()
			c.stop(t, ctx, n, "nomad", syscall.SIGINT)
			c.stop(t, ctx, n, "consul", syscall.SIGTERM)
			require.Equal(t, before, c.tasks(t, ctx, n), "tasks on %s without agents", n.Name())
			c.start(t, ctx, n, "consul")
			c.start(t, ctx, n, "nomad")
			scenario.Eventually(ctx, t, agentBound, n.Name()+" is back", func() error { return c.ready(ctx, n) })
			t.Logf("%s: back %s after it was stopped, with %d tasks", n.Name(), seconds(time.Since(down)), len(before))
			c.settle(t, ctx)
			require.Equal(t, before, c.tasks(t, ctx, n), "tasks on %s after the upgrade", n.Name())
			tasks += len(before)
		}
		want := 0
		for _, service := range c.Services() {
			want += instancesOf(service) * len(service.Binaries)
		}
		require.Equal(t, want, tasks, "those of the services and of their databases")
		return 0, time.Since(began)
	})
}

// ready says whether Nomad has a machine as ready.
func (c *cluster) ready(ctx context.Context, n *node) error {
	nodes, _, err := c.nomad.Nodes().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, stub := range nodes {
		if stub.Name == n.Name() && stub.Status == nomadapi.NodeStatusReady {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready", n.Name())
}

// tasks are the processes of our programs on a machine, in its own numbering.
func (c *cluster) tasks(t *testing.T, ctx context.Context, n *node) []string {
	t.Helper()
	programs := map[string]bool{}
	for _, service := range c.Services() {
		for _, program := range service.Binaries {
			programs[program] = true
		}
	}
	script := `for p in /proc/[0-9]*; do case "$(cat $p/comm 2>/dev/null)" in ` + strings.Join(slices.Sorted(maps.Keys(programs)), "|") +
		`) echo "${p#/proc/} $(cat $p/comm)";; esac; done`
	out, err := n.Run(ctx, "", "sh", "-c", script)
	require.NoError(t, err)
	return slices.Sorted(strings.Lines(out))
}

// A machine loses what places services on it. They move off, as Nomad by itself
// would not do.
func testPlacement(t *testing.T, ctx context.Context, c *cluster) {
	victim := c.victim(t, ctx)
	c.underLoad(t, ctx, "a machine's placement is unset", func() (time.Duration, time.Duration) {
		began := time.Now()
		moving, cancel := context.WithTimeout(ctx, drainBound)
		defer cancel()
		require.NoError(t, c.Jobs().SetMeta(moving, victim.Name(), map[string]*string{"marquee_services": nil}, progress(t)))
		found, err := c.instances(ctx, "account")
		require.NoError(t, err)
		require.Len(t, found, wanted)
		for _, i := range found {
			require.NotEqual(t, victim.Name(), i.node)
		}
		return 0, time.Since(began)
	})
	yes := "true"
	require.NoError(t, c.Jobs().SetMeta(ctx, victim.Name(), map[string]*string{"marquee_services": &yes}, progress(t)))
}

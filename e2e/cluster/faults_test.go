package cluster

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	// replaceBound is how long after a machine was lost its instances may take to
	// be healthy elsewhere. Nomad gives a machine up to 5 s to be heard of again, and
	// jobs 2 s more to come back; the rest is four services that start at once.
	replaceBound = 15 * time.Second
	// staleBound is how long callers may be sent to an instance that is cut off.
	staleBound = 2 * time.Second
	// leadersBound is how long the servers may be without a leader. They elect
	// one in about 3 s.
	leadersBound = 15 * time.Second
	// refuseBound is how long a gateway that is cut off may leave a caller waiting
	// for an answer, which may be that there is none.
	refuseBound = 10 * time.Second
)

// A machine loses its power. No idempotent call fails, and what ran there runs
// elsewhere soon, but for its server of NATS, which comes back with it: the others
// take the events meanwhile.
func testKillMachine(t *testing.T, ctx context.Context, c *cluster) {
	victim := c.victim(t, ctx)
	events, err := c.events(ctx)
	require.NoError(t, err)
	c.underLoad(t, ctx, "a client machine is killed", func() (time.Duration, time.Duration) {
		require.NoError(t, victim.Off())
		excluded, replaced := c.without(t, ctx, victim.Name(), replaceBound)
		t.Logf("out of Consul after %s, replaced after %s", seconds(excluded), seconds(replaced))
		events = c.publish(t, ctx, "killed", events)
		return excluded, replaced
	})
	began := time.Now()
	c.switchOn(t, ctx, victim, true)
	c.settle(t, ctx)
	t.Logf("the machine was part of the cluster again %s after it was switched on", seconds(time.Since(began)))
	t.Logf("three servers of NATS had all of %d events %s after that", events, seconds(c.caughtUp(t, ctx, events)))
}

// A machine is cut off, and comes back. Callers on the right side notice nothing
// and are soon sent nowhere else; those on the wrong side get an answer, too.
func testPartition(t *testing.T, ctx context.Context, c *cluster) {
	victim := c.victim(t, ctx)
	var cutOff []string
	require.NoError(t, c.each(ctx, func(service string, found []instance) error {
		for _, i := range found {
			if i.node == victim.Name() {
				cutOff = append(cutOff, i.id)
			}
		}
		return nil
	}))
	others := slices.DeleteFunc(slices.Clone(c.clients()), func(n *node) bool { return n == victim })
	reachable := c.openDoors(t, others...)

	c.underLoad(t, ctx, "a client machine is cut off", func() (time.Duration, time.Duration) {
		began := time.Now()
		require.NoError(t, victim.Unplug(ctx))
		time.Sleep(staleBound)
		after := load.Start(ctx, load.Plan{Rate: 100, Calls: 200, Timeout: staleBound, Ops: reachable.KeyReads()}).Wait()
		t.Log("2 s after the cut, through the other machines: ", after)
		require.Empty(t, after.Failed)
		require.Less(t, after.Longest(), time.Second, "a call waited for an instance that is cut off")
		require.NotEmpty(t, after.ByInstance)
		for _, id := range cutOff {
			require.Zero(t, after.ByInstance[id], "%s is cut off", id)
		}
		var (
			answers string
			asking  = make(chan error, 1)
		)
		go func() {
			var err error
			answers, err = c.askCutOff(ctx, victim)
			asking <- err
		}()
		c.without(t, ctx, victim.Name(), replaceBound-time.Since(began))
		replaced := time.Since(began)
		t.Logf("replaced %s after the cut", seconds(replaced))
		require.NoError(t, <-asking)
		t.Log(answers)
		return 0, replaced
	})
	c.underLoad(t, ctx, "and is back", func() (time.Duration, time.Duration) {
		require.NoError(t, victim.Plug(ctx))
		took := c.settle(t, ctx)
		t.Logf("the machine was part of the cluster again after %s", seconds(took))
		calls := load.Start(ctx, load.Plan{Rate: 100, Calls: 200, Timeout: 5 * time.Second, Ops: reachable.KeyReads()}).Wait()
		require.Empty(t, calls.Failed)
		found, err := c.instances(ctx, "account")
		require.NoError(t, err)
		for id := range calls.ByInstance {
			require.True(t, slices.ContainsFunc(found, func(i instance) bool { return i.id == id }), "%s served, and is none of %v", id, found)
		}
		return 0, took
	})
}

// askCutOff calls the gateway of a machine that is cut off from that machine, and says
// what it answered.
func (c *cluster) askCutOff(ctx context.Context, n *node) (string, error) {
	client := &http.Client{Timeout: refuseBound, Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}
	answers := map[int]int{}
	began := time.Now()
	for range 10 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/v1/signing-keys", n.Address(), httpPort), nil)
		if err != nil {
			return "", err
		}
		response, err := client.Do(request)
		if err != nil {
			return "", fmt.Errorf("a gateway that is cut off does not answer: %w", err)
		}
		response.Body.Close()
		answers[response.StatusCode]++
		if !slices.Contains([]int{http.StatusOK, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, response.StatusCode) {
			return "", fmt.Errorf("a gateway that is cut off answers %s", response.Status)
		}
	}
	return fmt.Sprintf("10 calls on the cut off machine were answered in %s with %v", seconds(time.Since(began)), answers), nil
}

// The agents that lead Consul and Nomad crash at the same moment and are back
// later.
func testKillLeaders(t *testing.T, ctx context.Context, c *cluster) {
	consulLeader, nomadLeader := c.leaders(t, ctx)
	t.Logf("Consul is led by %s, Nomad by %s", consulLeader.Name(), nomadLeader.Name())
	c.underLoad(t, ctx, "both leaders are killed", func() (time.Duration, time.Duration) {
		began := time.Now()
		c.stop(t, ctx, consulLeader, "consul", syscall.SIGKILL)
		c.stop(t, ctx, nomadLeader, "nomad", syscall.SIGKILL)
		led := scenario.Eventually(ctx, t, leadersBound, "others lead", func() error {
			for i, n := range c.machines[:servers] {
				if n == consulLeader || n == nomadLeader {
					continue
				}
				return c.ledBy(ctx, i, func(address string) bool { return address != consulLeader.spec.Address },
					func(address string) bool { return address != nomadLeader.spec.Address })
			}
			return fmt.Errorf("no server has both agents")
		})
		t.Logf("others led after %s", seconds(led))
		c.start(t, ctx, consulLeader, "consul")
		c.start(t, ctx, nomadLeader, "nomad")
		c.settle(t, ctx)
		return led, time.Since(began)
	})
}

// leaders are the servers that lead.
func (c *cluster) leaders(t *testing.T, ctx context.Context) (consul, nomad *node) {
	t.Helper()
	by := func(address string) *node {
		host, _, err := net.SplitHostPort(address)
		require.NoError(t, err)
		for _, n := range c.machines {
			if n.spec.Address == host {
				return n
			}
		}
		require.FailNow(t, "led by an unknown machine", address)
		return nil
	}
	address, err := c.consul.Status().Leader()
	require.NoError(t, err)
	consul = by(address)
	address, err = c.nomad.Status().Leader()
	require.NoError(t, err)
	return consul, by(address)
}

// ledBy asks a server who leads, and whether that is fine.
func (c *cluster) ledBy(ctx context.Context, server int, consulFine, nomadFine func(host string) bool) error {
	env := c.operator(server)
	consul, err := env.Consul()
	if err != nil {
		return err
	}
	address, err := consul.Status().LeaderWithQueryOptions(nil)
	if err != nil {
		return err
	}
	if host, _, _ := net.SplitHostPort(address); host == "" || !consulFine(host) {
		return fmt.Errorf("consul is led by %q", address)
	}
	nomad, err := env.Nomad()
	if err != nil {
		return err
	}
	if address, err = nomad.Status().Leader(); err != nil {
		return err
	}
	if host, _, _ := net.SplitHostPort(address); host == "" || !nomadFine(host) {
		return fmt.Errorf("nomad is led by %q", address)
	}
	return nil
}

// The disk for Nomad's data is full on one client.
func testFillDisk(t *testing.T, ctx context.Context, c *cluster) {
	victim := c.victim(t, ctx)
	filler := victim.Path("/var/lib/nomad/filler")
	c.collect(t, ctx, victim)
	c.underLoad(t, ctx, "a client's disk is full", func() (time.Duration, time.Duration) {
		fill(t, filler, victim.Path("/var/lib/nomad"))
		calls := load.Start(ctx, load.Plan{Rate: 100, Calls: 500, Timeout: 5 * time.Second, Ops: c.openDoors(t, c.clients()...).KeyReads()}).Wait()
		require.Empty(t, calls.Failed)
		var space unix.Statfs_t
		require.NoError(t, unix.Statfs(victim.Path("/var/lib/nomad"), &space))
		require.Less(t, space.Bavail*uint64(space.Bsize), uint64(64<<10), "the disk is not full any more")
		require.NoError(t, os.Remove(filler))
		return 0, 0
	})
	running, err := victim.Running(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"artifactd", "consul", "nomad"}, running, "the agents have stayed up")
}

// collect has a machine remove what is left of instances that have ended: Nomad
// would do so when its disk is full, and make room.
func (c *cluster) collect(t *testing.T, ctx context.Context, n *node) {
	t.Helper()
	nodes, _, err := c.nomad.Nodes().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	i := slices.IndexFunc(nodes, func(stub *nomadapi.NodeListStub) bool { return stub.Name == n.Name() })
	require.GreaterOrEqual(t, i, 0)
	// The API's own call takes the empty answer for an error.
	answer, err := c.nomad.Raw().Response("/v1/client/gc?node_id="+nodes[i].ID, (&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	require.NoError(t, answer.Close())
	scenario.Eventually(ctx, t, settleBound, "nothing is left of what has ended on "+n.Name(), func() error {
		allocs, _, err := c.nomad.Nodes().Allocations(nodes[i].ID, (&nomadapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		running := map[string]bool{}
		for _, a := range allocs {
			running[a.ID] = a.ClientStatus == nomadapi.AllocClientStatusRunning
		}
		folders, err := os.ReadDir(n.Path("/var/lib/nomad/alloc"))
		if err != nil {
			return err
		}
		for _, folder := range folders {
			if !running[folder.Name()] {
				return fmt.Errorf("%s is", folder.Name())
			}
		}
		return nil
	})
}

// fill writes a file until a disk is full.
func fill(t *testing.T, path, disk string) {
	t.Helper()
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	chunk := make([]byte, 1<<20)
	for len(chunk) > 0 {
		if _, err := file.Write(chunk); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC, "fill %s", disk)
			chunk = chunk[:len(chunk)/16] // the last bytes too
		}
	}
}

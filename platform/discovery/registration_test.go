package discovery_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
)

// childAgent makes the test binary a process that registers with that agent and
// stays, for the test that kills it.
const childAgent = "DISCOVERY_TEST_CHILD_AGENT"

func TestMain(m *testing.M) {
	if address := os.Getenv(childAgent); address != "" {
		os.Exit(child(address))
	}
	os.Exit(m.Run())
}

func child(address string) int {
	config := api.DefaultConfig()
	config.Address = address
	client, err := api.NewClient(config)
	if err == nil {
		var registered *discovery.Registered
		if registered, err = discovery.Register(context.Background(), client, registration("killed", 1)); err == nil {
			registered.SetReady(true)
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func registration(service string, port int) discovery.Registration {
	return discovery.Registration{
		Service: service, Address: fmt.Sprintf("127.0.0.1:%d", port), Environment: "test",
		Tags: []string{"grpc"}, Meta: map[string]string{"version": "1"}, TTL: discovery.MinTTL,
	}
}

func deregister(t testing.TB, r *discovery.Registered) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(t, r.Deregister(ctx))
}

func TestRegister(t *testing.T) {
	agent := consultest.Start(t)
	client := agent.Client
	c := newConsul(t, client, quick())

	t.Run("readiness, and deregistration", func(t *testing.T) {
		f := follow(t, c, discovery.Query{Service: "ready", Tags: []string{"grpc", "env-test"}})
		f.expect(t, "")
		wanted := registration("ready", 1)
		wanted.ConnectNative = true
		wanted.TTL = time.Minute // neither a heartbeat nor the TTL helps
		r, err := discovery.Register(t.Context(), client, wanted)
		require.NoError(t, err)
		entries, _, err := client.Health().Service("ready", "", false, nil)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		require.Equal(t, r.ID(), entries[0].Service.ID)
		require.Equal(t, api.HealthCritical, entries[0].Checks.AggregatedStatus())
		require.Equal(t, map[string]string{"version": "1"}, entries[0].Service.Meta)
		require.True(t, entries[0].Service.Connect.Native)
		f.quiet(t)

		r.SetReady(true)
		f.expect(t, "1")
		r.SetReady(false)
		f.expect(t, "")
		r.SetReady(true)
		f.expect(t, "1")
		deregister(t, r)
		f.expect(t, "")
		require.NoError(t, r.Deregister(t.Context()), "the second call does nothing")
		require.Zero(t, running(t, "discovery.(*Registered).heartbeat"))
		entries, _, err = client.Health().Service("ready", "", false, nil)
		require.NoError(t, err)
		require.Empty(t, entries)
	})

	t.Run("stays longer than its TTL", func(t *testing.T) {
		proxy := agent.Proxy()
		f := follow(t, c, discovery.Query{Service: "stays"})
		f.expect(t, "")
		wanted := registration("stays", 1)
		wanted.TTL = 2 * time.Second
		r, err := discovery.Register(t.Context(), proxy.Client, wanted)
		require.NoError(t, err)
		defer deregister(t, r)
		r.SetReady(true)
		f.expect(t, "1")
		start := time.Now()
		moreRequests(t, proxy, "/v1/agent/check/update/", 6)
		require.InDelta(t, 2*wanted.TTL, time.Since(start), float64(wanted.TTL), "a heartbeat each third of the TTL")
		f.quiet(t)
	})

	t.Run("registered again when it was removed", func(t *testing.T) {
		f := follow(t, c, discovery.Query{Service: "removed"})
		f.expect(t, "")
		r, err := discovery.Register(t.Context(), client, registration("removed", 1))
		require.NoError(t, err)
		defer deregister(t, r)
		r.SetReady(true)
		f.expect(t, "1")
		remove(t, client, r.ID())
		f.expect(t, "")
		f.expect(t, "1")
	})

	t.Run("the agent cannot be reached at first", func(t *testing.T) {
		proxy := agent.Proxy()
		proxy.Cut("")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := discovery.Register(ctx, proxy.Client, registration("later", 1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Greater(t, proxy.Count("/v1/agent/service/register"), 1, "it tried only once")

		type result struct {
			registered *discovery.Registered
			err        error
		}
		done := make(chan result, 1)
		go func() {
			r, err := discovery.Register(t.Context(), proxy.Client, registration("later", 1))
			done <- result{r, err}
		}()
		moreRequests(t, proxy, "/v1/agent/service/register", 2)
		proxy.Heal()
		got := <-done
		require.NoError(t, got.err)
		deregister(t, got.registered)
	})

	t.Run("heartbeats that fail are made up for", func(t *testing.T) {
		proxy := agent.Proxy()
		f := follow(t, c, discovery.Query{Service: "lost"})
		f.expect(t, "")
		r, err := discovery.Register(t.Context(), proxy.Client, registration("lost", 1))
		require.NoError(t, err)
		defer deregister(t, r)
		r.SetReady(true)
		f.expect(t, "1")
		proxy.Cut("")
		f.expect(t, "") // the TTL has passed
		proxy.Heal()
		f.expect(t, "1")
	})

	t.Run("deregistering from an agent that hangs ends with the context", func(t *testing.T) {
		proxy := agent.Proxy()
		r, err := discovery.Register(t.Context(), proxy.Client, registration("hangs", 1))
		require.NoError(t, err)
		proxy.Hang("")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, r.Deregister(ctx), context.DeadlineExceeded)
		require.Less(t, time.Since(start), 2*time.Second)
		proxy.Heal()
		require.Eventually(t, func() bool { return running(t, "discovery.(*Registered).heartbeat") == 0 },
			patience, time.Millisecond, "the heartbeat goes on")
	})

	t.Run("a killed process is gone within its TTL and a second", func(t *testing.T) {
		f := follow(t, c, discovery.Query{Service: "killed"})
		f.expect(t, "")
		process := exec.Command(os.Args[0])
		process.Env = append(os.Environ(), childAgent+"="+agent.Address)
		process.Stderr = os.Stderr
		require.NoError(t, process.Start())
		t.Cleanup(func() { process.Process.Kill(); process.Wait() })
		f.expect(t, "1")
		require.NoError(t, process.Process.Kill())
		start := time.Now()
		f.expect(t, "")
		took := time.Since(start)
		require.LessOrEqual(t, took, discovery.MinTTL+time.Second)
		t.Logf("gone %s after kill -9 with a TTL of %s", took.Round(time.Millisecond), discovery.MinTTL)
	})
}

func TestRegisterAcrossAgentRestarts(t *testing.T) {
	for name, between := range map[string]func(*consultest.Agent){
		"remembered": func(*consultest.Agent) {},
		"forgotten":  (*consultest.Agent).Forget,
	} {
		t.Run(name, func(t *testing.T) {
			agent := consultest.Start(t)
			wanted := registration("account", 1)
			wanted.Log = hclog.New(&hclog.LoggerOptions{Output: testWriter{t}, Level: hclog.Info})
			r, err := discovery.Register(t.Context(), agent.Client, wanted)
			require.NoError(t, err)
			defer deregister(t, r)
			r.SetReady(true)
			f := follow(t, newConsul(t, agent.Client, quick()), discovery.Query{Service: "account"})
			for f.next(t).addresses != "1" {
				t.Log("not there yet")
			}

			agent.Kill()
			between(agent)
			agent.Restart()
			start := time.Now()
			require.Eventually(t, func() bool {
				service, err := agent.Client.Agent().Services()
				require.NoError(t, err)
				status, _, err := agent.Client.Agent().AgentHealthServiceByID(r.ID())
				return err == nil && service[r.ID()] != nil && status == api.HealthPassing
			}, patience, 5*time.Millisecond)
			t.Logf("registered and passing %s after the agent answered", time.Since(start).Round(time.Millisecond))
		})
	}
}

func TestRegisterRefusedByTheAgent(t *testing.T) {
	agent := consultest.Start(t, consultest.WithACL())
	config := api.DefaultConfig()
	config.Address = agent.Address
	anonymous, err := api.NewClient(config)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = discovery.Register(ctx, anonymous, registration("account", 1))
	require.ErrorContains(t, err, "403")
	require.NoError(t, ctx.Err(), "it went on trying")
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Log(string(p))
	return len(p), nil
}

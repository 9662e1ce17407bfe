package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/freeport"
	"github.com/marquee-ads/marquee/platform/tools"
)

// registryAway is how long the Consul agent is dead.
const registryAway = 20 * time.Second

// The agents die, and calls go on.
func TestRegistry(t *testing.T) {
	t.Run("ConsulAway", func(t *testing.T) {
		ctx := begin(t, 4*time.Minute)
		accounts := openDoors(t, ctx).Accounts()
		// Nobody but itself registers this one again.
		byHand(t, ctx, "account", "accountd")
		healthy(t, ctx, "account", 4, 30*time.Second)
		before, err := instances(ctx, "account")
		require.NoError(t, err)
		running := load.Start(ctx, accounts.Mixed(ctx, t))
		scenario.AtLeast(ctx, t, running, 200)
		requireEven(t, ctx, running, 4)
		connected := connections(t, before)

		killAgent(t, ctx, "consul")
		calls, _ := running.Snapshot()
		pause(t, ctx, registryAway)
		after, _ := running.Snapshot()
		t.Logf("%d calls in the %s without a registry", after-calls, registryAway)
		// The services that Nomad registered are on the agent's disk; this one's
		// check has run out meanwhile.
		back := time.Now()
		require.NoError(t, the.Cluster().Up(ctx))
		healthy(t, ctx, "account", 4, 30*time.Second)
		healthy(t, ctx, "gateway", 2, 30*time.Second)
		t.Logf("all instances are registered and healthy %.1f s after the agent was started", time.Since(back).Seconds())
		now, err := instances(ctx, "account")
		require.NoError(t, err)
		require.ElementsMatch(t, before, now)
		requireEven(t, ctx, running, 4)
		require.Subset(t, connections(t, before), connected, "connections were rebuilt although nothing had changed")
		requireUndisturbed(t, ctx, running, accounts)
	})
	t.Run("NextAgent", func(t *testing.T) {
		ctx := begin(t, 3*time.Minute)
		accounts := openDoors(t, ctx).Accounts()
		second := startSecondAgent(t, ctx)
		running := load.Start(ctx, accounts.Mixed(ctx, t))
		byHand(t, ctx, "account", "accountd", "--consul-addr="+second.address+","+clusterVariable(t, "CONSUL_HTTP_ADDR"))
		healthyAt(t, ctx, second.node, 1)
		requireEven(t, ctx, running, 4)

		began := time.Now()
		require.NoError(t, second.cmd.Process.Kill())
		_ = second.cmd.Wait() // killed: that is the point
		took := healthyAt(t, ctx, the.Cluster().Name(), 4)
		t.Logf("registered at the next agent after %.1f s", took.Seconds())
		requireEven(t, ctx, running, 4)
		t.Logf("an even share again within %.1f s", time.Since(began).Seconds())
		requireUndisturbed(t, ctx, running, accounts)
	})
	t.Run("NomadRestarts", func(t *testing.T) {
		ctx := begin(t, 3*time.Minute)
		accounts := openDoors(t, ctx).Accounts()
		running := load.Start(ctx, accounts.Mixed(ctx, t))
		scenario.AtLeast(ctx, t, running, 200)
		tasks := func() map[string]int {
			all := map[string]int{}
			for _, program := range []string{"accountd", "gatewayd", "postgresd", "meshproxyd", "echod"} {
				for alloc, pid := range processes(t, program) {
					all[program+" "+alloc] = pid
				}
			}
			return all
		}
		before := tasks()
		require.GreaterOrEqual(t, len(before), 7, "tasks")
		killAgent(t, ctx, "nomad-client")
		killAgent(t, ctx, "nomad-server")
		// A gateway that dies now has nobody to start it again.
		dead := kill(t, "gatewayd", 1)
		scenario.More(ctx, t, running, 600)
		began := time.Now()
		require.NoError(t, the.Cluster().Up(ctx))
		for _, service := range the.Services() {
			_, err := the.Jobs().WaitReady(ctx, service.Name)
			require.NoError(t, err)
		}
		t.Logf("Nomad has its %d tasks again %.1f s after its start", len(before), time.Since(began).Seconds())
		now := tasks()
		require.Len(t, now, len(before))
		for task, pid := range before {
			_, alloc, _ := strings.Cut(task, " ")
			if pid == dead[alloc] {
				require.NotEqual(t, pid, now[task], "%s was killed", task)
			} else {
				require.Equal(t, pid, now[task], "%s was started anew", task)
			}
		}
		requireEven(t, ctx, running, 3)
		requireUndisturbed(t, ctx, running, accounts)
	})
}

// agentProcess is the process id of one of the cluster's agents.
func agentProcess(t *testing.T, ctx context.Context, name string) int {
	t.Helper()
	status, err := the.Cluster().Status(ctx)
	require.NoError(t, err)
	i := slices.IndexFunc(status.Agents, func(a cluster.AgentStatus) bool { return a.Name == name })
	require.GreaterOrEqual(t, i, 0)
	require.NotZero(t, status.Agents[i].PID, "%s does not run", name)
	return status.Agents[i].PID
}

// killAgent ends one of the cluster's agents as a crash would.
func killAgent(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	pid := agentProcess(t, ctx, name)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	// Whatever becomes of the test, the next one needs it.
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, the.Cluster().Up(ctx))
	})
	scenario.Eventually(ctx, t, 10*time.Second, name+" has ended", func() error {
		if syscall.Kill(pid, 0) == nil {
			return errNotYet
		}
		return nil
	})
}

// connections are the established TCP connections to the mesh ports of a
// service's instances, each as its two ports.
func connections(t *testing.T, ids []string) []string {
	t.Helper()
	entries, _, err := the.Cluster().Consul().Health().Service("account", "", false, nil)
	require.NoError(t, err)
	var ports []int
	for _, e := range entries {
		if slices.Contains(ids, e.Service.ID) {
			ports = append(ports, e.Service.Port)
		}
	}
	require.Len(t, ports, len(ids))
	found := connectionsTo(t, ports...)
	// Each gateway to each instance, at least.
	require.GreaterOrEqual(t, len(found), 2*len(ids))
	return found
}

// secondAgent is one more Consul agent beside the cluster's own, which is also
// the only server: it joins that one as a machine of its own would.
type secondAgent struct {
	address, node string
	cmd           *exec.Cmd
}

func startSecondAgent(t *testing.T, ctx context.Context) secondAgent {
	t.Helper()
	program, err := tools.Ensure(ctx, tools.Consul, func(line string) { t.Log(line) })
	require.NoError(t, err)
	settings, err := os.ReadFile(filepath.Join(the.Cluster().Dir(), "config", "consul.hcl"))
	require.NoError(t, err)
	setting := func(name string) string {
		found := regexp.MustCompile(`(?m)^\s*` + name + `\s*=\s*"?([^"\n]+?)"?$`).FindSubmatch(settings)
		require.NotNil(t, found, "the cluster's agent has no setting %s", name)
		return string(found[1])
	}
	dir := t.TempDir()
	ports, err := freeport.Take(2)
	require.NoError(t, err)
	agent := secondAgent{address: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), node: "e2e-second"}
	token := clusterVariable(t, "CONSUL_HTTP_TOKEN")
	config, err := json.Marshal(map[string]any{
		"node_name": agent.node, "data_dir": dir, "encrypt": setting("encrypt"),
		"bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "retry_join": []string{"127.0.0.1:" + setting("serf_lan")},
		"disable_update_check": true,
		"ports":                map[string]int{"http": ports[0], "serf_lan": ports[1], "dns": -1, "grpc": -1, "grpc_tls": -1},
		"acl":                  map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]string{"agent": token}},
		"limits":               map[string]int{"http_max_conns_per_client": 1000},
	})
	require.NoError(t, err)
	file := filepath.Join(dir, "config.json")
	require.NoError(t, os.WriteFile(file, config, 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	agent.cmd = exec.Command(program, "agent", "-config-file="+file)
	agent.cmd.Stdout, agent.cmd.Stderr = log, log
	agent.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, agent.cmd.Start())
	t.Cleanup(func() {
		_ = agent.cmd.Process.Kill()
		_ = agent.cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("log of the second agent:\n%s", text)
		}
		// A machine that is gone for good.
		_, err := the.Cluster().Consul().Catalog().Deregister(&consulapi.CatalogDeregistration{Node: agent.node}, nil)
		require.NoError(t, err)
	})
	client, err := consulapi.NewClient(&consulapi.Config{Address: agent.address, Token: token})
	require.NoError(t, err)
	scenario.Eventually(ctx, t, 20*time.Second, "the second agent knows the cluster's services", func() error {
		found, _, err := client.Health().Service("account", "", true, nil)
		if err == nil && len(found) == 0 {
			err = errNotYet
		}
		return err
	})
	return agent
}

// healthyAt waits until n healthy instances of account are registered at a node.
func healthyAt(t *testing.T, ctx context.Context, node string, n int) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, 30*time.Second, fmt.Sprintf("%d instances are registered at %s", n, node), func() error {
		entries, _, err := the.Cluster().Consul().Health().Service("account", "", true, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		have := map[string]int{}
		for _, e := range entries {
			have[e.Node.Node]++
		}
		if have[node] != n {
			return fmt.Errorf("they are at %v", have)
		}
		return nil
	})
}

// clusterVariable is one of the variables by which programs reach the cluster.
func clusterVariable(t *testing.T, name string) string {
	t.Helper()
	for _, v := range the.Cluster().Env() {
		if v.Name == name {
			return v.Value
		}
	}
	require.Fail(t, "the cluster has no variable "+name)
	return ""
}

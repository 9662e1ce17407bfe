package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// environment is what the job files run as.
const environment = "development"

// errNotYet is what a condition says that has nothing to add.
var errNotYet = errors.New("not yet")

// the is the platform that all scenarios share; TestMain brings it up.
var the *platform

type platform struct {
	*stack.Stack
	root  string
	edges edges.Edges
	// watched is until nobody watches the gateways that run now.
	watched sync.WaitGroup
}

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run()) // which only lists
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := 1
	if err := bringUp(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: bring the platform up:", err)
	} else {
		// Ctrl-C takes the platform away, and the scenario under way with it.
		done := context.AfterFunc(ctx, func() { takeDown(); os.Exit(130) })
		code = m.Run()
		done()
	}
	takeDown()
	stop()
	os.Exit(code)
}

func bringUp(ctx context.Context) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	began := time.Now()
	files := []string{filepath.Join(root, "nomad-jobs", "edges.hcl"), filepath.Join(root, "e2e", "jobs", "edges.hcl")}
	services, err := stack.ReadServices(root)
	if err != nil {
		return err
	}
	s, err := stack.Open(stack.Config{
		Root:          root,
		Cluster:       cluster.Config{Dir: cluster.Folder(root, "e2e"), Name: "e2e"},
		VariableFiles: []string{filepath.Join(root, "nomad-jobs", "vars", "local.hcl")},
		EdgesFiles:    files,
		Services: append(services, stack.Service{
			Name: "echo", File: "e2e/jobs/echo.nomad.hcl", Binaries: map[string]string{"echo_binary": "echod"},
		}),
		Progress: func(line string) { fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), line) },
	})
	if err != nil {
		return err
	}
	the = &platform{Stack: s, root: root}
	// What an interrupted run left would make this one's figures its own.
	if err := s.Cluster().Wipe(ctx); err != nil {
		return err
	}
	var text []byte
	for _, file := range files {
		more, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text = append(append(text, more...), '\n')
	}
	if the.edges, err = edges.Parse(text, "edges.hcl"); err != nil {
		return err
	}
	if err := s.Prepare(ctx); err != nil {
		return err
	}
	if _, err := s.DeployAll(ctx); err != nil {
		return err
	}
	_, err = s.WaitServed(ctx, "/v1/signing-keys")
	return err
}

func takeDown() {
	if the == nil || os.Getenv("MARQUEE_E2E_KEEP") != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := the.Cluster().Wipe(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: take the platform down:", err)
	}
}

// begin waits until nothing of earlier scenarios goes on, bounds a test in time
// and prints what the services logged when it fails.
func begin(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	the.watched.Wait()
	return beginBeside(t, limit)
}

// beginBeside is begin for a scenario that may run while somebody watches the
// gateways: it starts none of them anew.
func beginBeside(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, s := range the.Services() {
			var logs bytes.Buffer
			if err := the.Jobs().Logs(ctx, s.Name, jobs.LogOptions{Lines: 60}, &logs); err != nil {
				t.Logf("logs of %s: %v", s.Name, err)
				continue
			}
			t.Logf("logs of %s:\n%s", s.Name, logs.String())
		}
	})
	// A scenario starts from the whole platform, whatever the one before left.
	for _, s := range the.Services() {
		_, err := the.Jobs().WaitReady(ctx, s.Name)
		require.NoError(t, err)
	}
	return ctx
}

// bothGateways are those that run now, and the index after which Consul may have
// others.
func bothGateways(t *testing.T, ctx context.Context) ([]stack.Gateway, uint64) {
	t.Helper()
	found, index, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	require.NoError(t, err)
	require.Len(t, found, 2, "gateways")
	return found, index
}

// openDoors makes clients of both gateways that run now.
func openDoors(t *testing.T, ctx context.Context) scenario.Doors {
	t.Helper()
	found, _ := bothGateways(t, ctx)
	return scenario.OpenDoors(t, found)
}

// requireEven waits until n instances share the calls of a load that goes on, and
// requires of the 600 after that to be spread evenly over them, within five per
// cent. More calls would prove less: any that choose at random would then be as
// even. It returns how long it waited.
func requireEven(t *testing.T, ctx context.Context, r *load.Running, n int) time.Duration {
	t.Helper()
	next := func(calls int) map[string]int {
		_, before := r.Snapshot()
		scenario.More(ctx, t, r, calls)
		_, spread := r.Snapshot()
		maps.DeleteFunc(spread, func(id string, served int) bool { return served == before[id] })
		for id := range spread {
			spread[id] -= before[id]
		}
		return spread
	}
	within := func(spread map[string]int, tolerance float64) error {
		if len(spread) != n {
			return fmt.Errorf("%d instances answer: %v", len(spread), spread)
		}
		calls := 0
		for _, share := range spread {
			calls += share
		}
		for id, share := range spread {
			if even := float64(calls) / float64(n); math.Abs(float64(share)-even) > tolerance*even {
				return fmt.Errorf("%s answers %d of %d calls, which is more than %.0f %% off: %v", id, share, calls, 100*tolerance, spread)
			}
		}
		return nil
	}
	waited := scenario.Eventually(ctx, t, 20*time.Second, "all instances share the calls", func() error { return within(next(100), .2) })
	spread := next(600)
	t.Logf("calls spread over %d instances: %v", n, spread)
	require.NoError(t, within(spread, .05))
	return waited
}

// requireUndisturbed ends a load of which no call may have failed.
func requireUndisturbed(t *testing.T, ctx context.Context, running *load.Running, accounts *scenario.Accounts) {
	t.Helper()
	report := running.Stop()
	t.Log(report)
	require.Empty(t, report.Failed, "no call may fail")
	accounts.Check(ctx, t)
}

// instances are the ids of a service's healthy instances, as Consul has them.
func instances(ctx context.Context, service string) ([]string, error) {
	entries, _, err := the.Cluster().Consul().Health().Service(service, "", true, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Service.ID)
	}
	return ids, err
}

// healthy waits until a service has n healthy instances in Consul.
func healthy(t *testing.T, ctx context.Context, service string, n int, limit time.Duration) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, limit, fmt.Sprintf("%s has %d healthy instances", service, n), func() error {
		ids, err := instances(ctx, service)
		if err == nil && len(ids) != n {
			err = fmt.Errorf("it has %d", len(ids))
		}
		return err
	})
}

// as joins the mesh from this process as a service, with the operator's rights.
func as(t *testing.T, service string) mesh.Mesh {
	t.Helper()
	log := hclog.NewNullLogger()
	found := discovery.New(the.Cluster().Consul(), discovery.Options{Log: log})
	t.Cleanup(func() { found.Close() })
	m, err := mesh.Native(context.WithoutCancel(t.Context()), mesh.NativeConfig{
		Consul: the.Cluster().Consul(), Service: service, Environment: environment, Log: log,
		Resolver: discovery.NewBuilder(found, environment), Watcher: found,
	})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, m.Ready(ctx))
	return m
}

// byHand starts one more instance of a service outside Nomad. args win over what
// it is configured with otherwise.
func byHand(t *testing.T, ctx context.Context, service, program string, args ...string) *exec.Cmd {
	t.Helper()
	extra, err := the.ByHand(ctx, service)
	require.NoError(t, err)
	variables, err := the.Variables()
	require.NoError(t, err)
	set := map[string]string{"PATH": os.Getenv("PATH"), "HOME": t.TempDir()}
	for _, v := range the.Cluster().Env() {
		set[v.Name] = v.Value
	}
	maps.Copy(set, extra)
	cmd := exec.Command(variables[service+"_binary"], append([]string{"--listen", ":0"}, args...)...) //nolint:gosec // our own binary
	for name, value := range set {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	log := filepath.Join(t.TempDir(), program+".log")
	out, err := os.Create(log)
	require.NoError(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("log of the %s started by hand:\n%s", program, text)
		}
	})
	return cmd
}

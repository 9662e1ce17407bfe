package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

const (
	clusterName = "e2e-sidecar"
	environment = "development"
	// allocations is the file in the box's folder in which it notes what it ran.
	allocations = "allocations"
)

// The account service behind Envoys serves the native gateways as it does
// without.
func TestSidecar(t *testing.T) {
	if inBox() {
		scenarios(t)
		return
	}
	scenario.NeedRoot(t, map[string]string{"iptables": "apt-get install iptables", "ip": "apt-get install iproute2"})
	// From cold the two agents are built first.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := prepare(t, ctx)

	folder := cluster.Folder(root, clusterName)
	require.NoError(t, os.RemoveAll(folder), "remove what an interrupted run left")
	require.NoError(t, os.MkdirAll(folder, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	before := network(t)
	inside := fmt.Sprintf("/run/marquee-%d", os.Getpid())
	t.Cleanup(func() {
		ran := noted(t, folder)
		require.Equal(t, before, network(t), "the machine's network")
		require.Empty(t, traces(t, append([]string{folder + "/", inside + "/"}, ran...)), "left on the machine")
		if !t.Failed() && !t.Skipped() {
			require.NotEmpty(t, ran, "the box ran no allocation")
			t.Logf("the machine is as before: the same network, and nothing is left of %d allocations", len(ran))
		}
	})
	limited, cancel := context.WithTimeout(ctx, 6*time.Minute)
	defer cancel()
	runBox(t, limited, inside)
}

// prepare builds outside the box all that is needed in it, where there is no
// network, and returns the checkout.
func prepare(t *testing.T, ctx context.Context) string {
	t.Helper()
	say := func(line string) { fmt.Println("  " + line) }
	if _, err := tools.Ensure(ctx, tools.Envoy, say); err != nil {
		t.Skipf("the sidecar test needs Envoy: %v", err)
	}
	for _, tool := range []string{tools.CNI, tools.Consul, tools.Nomad, tools.Postgres} {
		_, err := tools.Ensure(ctx, tool, say)
		require.NoError(t, err)
	}
	root, err := tools.Root()
	require.NoError(t, err)
	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	var programs []string
	for _, service := range services {
		for _, program := range service.Binaries {
			programs = append(programs, program)
		}
	}
	_, err = release.Build(ctx, programs...)
	require.NoError(t, err)
	return root
}

func noted(t *testing.T, folder string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, allocations))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(string(text))
}

// platform is the one in the box, with clients of all its gateways.
type platform struct {
	*stack.Stack
	doors  scenario.Doors
	stream stream
}

// scenarios run in the box, one after the other.
func scenarios(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	p := bringUp(t, ctx)
	p.stream = p.openStream(t, ctx)
	for _, s := range []struct {
		name string
		run  func(*testing.T, context.Context, *platform)
	}{
		{"StaysInTheBox", testStaysInTheBox},
		{"Serves", testServes},
		{"OnlyDrawnEdges", testOnlyDrawnEdges},
		{"DenyAndAllow", testDenyAndAllow},
		{"AccountCrashes", testAccountCrashes},
		{"EnvoyCrashes", testEnvoyCrashes},
		{"Restart", testRestart},
		{"PlainJobFile", testPlainJobFile},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, ctx, p) }) {
			p.logs(t)
			return
		}
	}
}

func bringUp(t *testing.T, ctx context.Context) *platform {
	t.Helper()
	began := time.Now()
	root, err := tools.Root()
	require.NoError(t, err)
	inside := enterBox(t, cluster.Folder(root, clusterName))
	envoy, err := tools.Find(ctx, tools.Envoy)
	require.NoError(t, err)
	cni, err := tools.Find(ctx, tools.CNI)
	require.NoError(t, err)

	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	for i := range services {
		switch services[i].Name {
		case "account":
			services[i].File = "nomad-jobs/sidecar/account.nomad.hcl"
			services[i].Variables = map[string]string{"envoy_binary": envoy, "account_count": "2"}
		case "account-db":
			// Envoy dials it from another network, in which loopback is its own.
			services[i].Variables["host_network"] = "default"
		}
	}
	s, err := stack.Open(stack.Config{
		Root:          root,
		Cluster:       cluster.Config{Dir: filepath.Join(inside, "cluster"), Name: clusterName, Interface: boxInterface, CNIPath: cni},
		Services:      services,
		VariableFiles: []string{filepath.Join(root, "nomad-jobs", "vars", "local.hcl")},
		Progress:      func(line string) { fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), line) },
	})
	require.NoError(t, err)
	p := &platform{Stack: s}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.note(ctx); err != nil {
			t.Error(err)
		}
		require.NoError(t, s.Cluster().Wipe(ctx))
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			p.logs(t)
			require.NoError(t, err)
		}
	}
	must(s.Prepare(ctx))
	_, err = s.DeployAll(ctx)
	must(err)
	_, err = s.WaitServed(ctx, "/v1/signing-keys")
	must(err)
	t.Logf("the first call was served %.1f s after the box was started", time.Since(began).Seconds())
	gateways, _, err := stack.Gateways(ctx, s.Cluster().Consul(), 0)
	require.NoError(t, err)
	require.Len(t, gateways, 2, "gateways")
	p.doors = scenario.OpenDoors(t, gateways)
	return p
}

// ran are the ids of all allocations.
func (p *platform) ran(ctx context.Context) ([]string, error) {
	list, _, err := p.Cluster().Nomad().Allocations().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	var ids []string
	for _, a := range list {
		ids = append(ids, a.ID)
	}
	return ids, err
}

// note leaves what ran for the one who looks for traces of it.
func (p *platform) note(ctx context.Context) error {
	ids, err := p.ran(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(filepath.Dir(p.Cluster().Dir()), allocations)
	return os.WriteFile(file, []byte(strings.Join(ids, "\n")), 0o600)
}

// logs prints what the services, their Envoys and Nomad logged last.
func (p *platform) logs(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range p.Services() {
		var out bytes.Buffer
		err := p.Jobs().Logs(ctx, s.Name, jobs.LogOptions{Lines: 40}, &out)
		t.Logf("logs of %s: %v\n%s", s.Name, err, out.String())
	}
	for name, file := range p.Cluster().Logs() {
		text, err := os.ReadFile(file)
		lines := strings.Split(string(text), "\n")
		t.Logf("log of %s: %v\n%s", name, err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// What is looked for on the machine afterwards is there to be found in the box.
func testStaysInTheBox(t *testing.T, ctx context.Context, p *platform) {
	ids, err := p.ran(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, ids)
	for _, id := range ids {
		require.NotEmpty(t, traces(t, []string{id}), "of allocation %s", id)
	}
	now := network(t)
	require.Contains(t, now["interfaces"], "nomad", "the bridge")
	require.Contains(t, now["rules"], "CNI-", "rules for mapped ports")
	require.Equal(t, "1", now["forwarding"])
}

// Sign-up, log-in and reads under load: no failed call, and both instances share
// the work.
func testServes(t *testing.T, ctx context.Context, p *platform) {
	plan := p.doors.Accounts().Mixed(ctx, t)
	plan.Calls = 2000
	report := load.Start(ctx, plan).Wait()
	t.Log("through Envoy: ", report)
	require.Empty(t, report.Failed, "no call may fail")
	require.Equal(t, plan.Calls, report.Calls)
	p.requireEven(t, ctx)
}

// requireEven says whether calls are spread evenly over both instances.
func (p *platform) requireEven(t *testing.T, ctx context.Context) {
	t.Helper()
	const calls, instances = 600, 2
	report := load.Start(ctx, load.Plan{Rate: 300, Calls: calls, Timeout: 5 * time.Second, Ops: p.doors.Accounts().KeyReads()}).Wait()
	t.Log("spread: ", report)
	require.Empty(t, report.Failed)
	require.Len(t, report.ByInstance, instances)
	for id, answered := range report.ByInstance {
		require.InEpsilon(t, calls/instances, answered, 0.05, "calls answered by %s", id)
	}
}

// An instance behind Envoy refuses who has no edge to it, and lets nothing in
// beside the mesh.
func testOnlyDrawnEdges(t *testing.T, ctx context.Context, p *platform) {
	check := func(caller string) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := p.dial(t, ctx, caller, "account").Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}
	require.NoError(t, check("gateway"), "gateway -> account is drawn")
	for _, caller := range []string{"stranger", "account", "account-db"} {
		err := check(caller)
		require.Equal(t, codes.PermissionDenied, status.Code(err), "%s -> account is not drawn: %v", caller, err)
		require.Contains(t, err.Error(), "RBAC", "it is Envoy that refuses")
	}

	tried := 0
	list, _, err := p.Cluster().Nomad().Jobs().Allocations("account", false, (&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	for _, stub := range list {
		if stub.ClientStatus != nomadapi.AllocClientStatusRunning {
			continue
		}
		alloc, _, err := p.Cluster().Nomad().Allocations().Info(stub.ID, (&nomadapi.QueryOptions{}).WithContext(ctx))
		require.NoError(t, err)
		for _, port := range alloc.AllocatedResources.Shared.Ports {
			address := net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value))
			for name, creds := range map[string]credentials.TransportCredentials{"plaintext": insecure.NewCredentials(), "TLS without a certificate": credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})} {
				tried++
				require.Error(t, scenario.Knock(ctx, address, creds), "port %s over %s", port.Label, name)
			}
		}
	}
	require.Equal(t, 2*3*2, tried, "two instances with three ports each")
}

// dial joins the mesh as a service, with the operator's rights, and connects to
// another.
func (p *platform) dial(t *testing.T, ctx context.Context, caller, service string) healthv1.HealthClient {
	t.Helper()
	found := discovery.New(p.Cluster().Consul(), discovery.Options{})
	t.Cleanup(func() { found.Close() })
	m, err := mesh.Native(context.WithoutCancel(ctx), mesh.NativeConfig{
		Consul: p.Cluster().Consul(), Service: caller, Environment: environment, Log: hclog.NewNullLogger(),
		Resolver: discovery.NewBuilder(found, environment), Watcher: found,
	})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	require.NoError(t, m.Ready(ctx))
	conn, err := m.NewClient(service)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return healthv1.NewHealthClient(conn)
}

// stream is one that stays open until somebody ends it.
type stream struct {
	opened time.Time
	ended  chan error // gets why, once
}

// openStream calls a streaming method of account as the gateway.
func (p *platform) openStream(t *testing.T, ctx context.Context) stream {
	t.Helper()
	var reading sync.WaitGroup
	t.Cleanup(reading.Wait) // after dial's own, which close the connection
	watch, err := p.dial(t, ctx, "gateway", "account").Watch(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	first, err := watch.Recv()
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_SERVING, first.GetStatus())
	s := stream{opened: time.Now(), ended: make(chan error, 1)}
	reading.Go(func() {
		var err error
		for err == nil {
			_, err = watch.Recv()
		}
		s.ended <- err
	})
	return s
}

// Taking the edge away stops calls on connections that exist and ends an open
// stream, giving it back lifts that: Envoy decides, and the caller does not notice who did.
func testDenyAndAllow(t *testing.T, ctx context.Context, p *platform) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, p.Cluster().SetEdge(ctx, "gateway", "account", true))
	})
	account := accountv1.NewAccountServiceClient(p.doors.GRPC)
	// In a row, so that both gateways ask both instances.
	inARow := func(want codes.Code) error {
		for range 20 {
			_, err := account.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
			if status.Code(err) != want {
				return fmt.Errorf("a call ended with %s instead of %s: %w", status.Code(err), want, err)
			}
		}
		return nil
	}
	require.NoError(t, inARow(codes.OK))
	// Envoy would end every call after 15 s unless it was told otherwise.
	select {
	case err := <-p.stream.ended:
		require.FailNow(t, "the open stream ended by itself", "after %s: %v", time.Since(p.stream.opened), err)
	case <-time.After(time.Until(p.stream.opened.Add(16 * time.Second))):
	}

	began := time.Now()
	require.NoError(t, p.Cluster().SetEdge(ctx, "gateway", "account", false))
	took := scenario.Eventually(ctx, t, 4*time.Second, "all calls are refused", func() error { return inARow(codes.PermissionDenied) })
	_, err := p.doors.REST.Do(ctx, load.Request{Method: "GET", Path: "/v1/signing-keys"}, nil)
	var problem *load.ProblemError
	require.ErrorAs(t, err, &problem)
	require.Equal(t, http.StatusForbidden, problem.HTTPStatus, "%s", problem.Body)
	t.Logf("all calls were refused %s after the deny", took.Round(time.Millisecond))
	select {
	case err := <-p.stream.ended:
		t.Logf("the open stream ended %s after the deny: %v", time.Since(began).Round(time.Millisecond), err)
	case <-time.After(time.Until(began.Add(5 * time.Second))):
		require.FailNow(t, "the open stream goes on", "%s after the deny", time.Since(began))
	}

	require.NoError(t, p.Cluster().SetEdge(ctx, "gateway", "account", true))
	took = scenario.Eventually(ctx, t, 4*time.Second, "all calls succeed", func() error { return inARow(codes.OK) })
	t.Logf("all calls succeeded %s after the allow", took.Round(time.Millisecond))
}

func testAccountCrashes(t *testing.T, ctx context.Context, p *platform) { p.crash(t, ctx, "accountd") }

func testEnvoyCrashes(t *testing.T, ctx context.Context, p *platform) { p.crash(t, ctx, "envoy") }

// crash kills one of two processes under load; callers do not notice.
func (p *platform) crash(t *testing.T, ctx context.Context, program string) {
	t.Helper()
	running := load.Start(ctx, p.doors.Accounts().Mixed(ctx, t))
	scenario.AtLeast(ctx, t, running, 300)
	pids := processes(t, program)
	require.Len(t, pids, 2, "%s processes", program)
	began := time.Now()
	require.NoError(t, syscall.Kill(pids[0], syscall.SIGKILL))
	p.healthy(t, ctx, 1, 10*time.Second)
	excluded := time.Since(began)
	p.healthy(t, ctx, 2, 30*time.Second)
	restored := time.Since(began)
	scenario.More(ctx, t, running, 300)
	report := running.Stop()
	t.Logf("killed one %s of two; out of Consul after %.1f s, back after %.1f s; longest call %s",
		program, excluded.Seconds(), restored.Seconds(), report.Longest().Round(time.Millisecond))
	t.Log(report)
	require.Empty(t, report.Failed, "no call may fail")
	p.requireEven(t, ctx)
}

// Replacing the instances one after the other fails no call: each leaves Consul
// first, and its Envoy stops last.
func testRestart(t *testing.T, ctx context.Context, p *platform) {
	running := load.Start(ctx, p.doors.Accounts().Mixed(ctx, t))
	scenario.AtLeast(ctx, t, running, 200)
	require.NoError(t, p.Jobs().Restart(ctx, "account", nil))
	scenario.More(ctx, t, running, 200)
	report := running.Stop()
	t.Logf("replaced both instances; longest call %s", report.Longest().Round(time.Millisecond))
	t.Log(report)
	require.Empty(t, report.Failed, "no call may fail")
	require.Len(t, report.ByInstance, 4, "the two instances before and the two after")
}

// The job file is plain: Nomad's own command reads it with nothing but variables
// from the environment, and finds that it is what runs.
func testPlainJobFile(t *testing.T, ctx context.Context, p *platform) {
	nomad, err := tools.Find(ctx, tools.Nomad)
	require.NoError(t, err)
	file, err := p.JobFile("account")
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, nomad, "job", "plan", "-no-color", file.Path)
	for _, v := range p.Cluster().Env() {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	for name, value := range file.Variables {
		cmd.Env = append(cmd.Env, "NOMAD_VAR_"+name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "nomad job plan, which ends with 1 when there is a difference:\n%s", out)
}

// processes are those of the box that run a program of this name.
func processes(t *testing.T, program string) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	var pids []int
	for _, link := range links {
		if filepath.Base(readLink(link)) == program {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// healthy waits until callers find n instances of account: n Envoys.
func (p *platform) healthy(t *testing.T, ctx context.Context, n int, limit time.Duration) {
	t.Helper()
	scenario.Eventually(ctx, t, limit, fmt.Sprintf("%d instances are healthy", n), func() error {
		found, _, err := p.Cluster().Consul().Health().Connect("account", "", true, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil && len(found) != n {
			err = fmt.Errorf("%d are", len(found))
		}
		return err
	})
}

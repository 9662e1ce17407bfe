package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/cluster/box"
	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/machine"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// The addresses in the box. Machines are in one network, the operator, who is
// this process, and a stranger come from others.
const (
	machinesCIDR = "10.88.0.0/24"
	operator     = "10.89.0.1"
	strangerCIDR = "198.51.100.0/24"
	stranger     = "198.51.100.2"
	httpPort     = 8080
	grpcPort     = 8081
	devicePort   = 1883

	servers = 3
	clients = 3
	// dataNode has the databases' data: it is not among those that are killed,
	// because nothing can take its place.
	dataNode = "client-1"
	// wanted is how many instances of each service there are; databases have one,
	// and NATS a server on each client.
	wanted = 2
	// diskSize is that of a client's disk for Nomad: what tasks write, and the
	// copies of programs and libraries that they are shut into. Nomad reckons with
	// 300 MB for each instance.
	diskSize = 3 << 30
	// settleBound is how long the cluster may take to be whole again between
	// scenarios. On processors of its own it takes a few seconds.
	settleBound = 90 * time.Second
)

// node is a machine and what it was made from.
type node struct {
	*box.Machine
	spec machine.Node
}

// cluster is the one in the box.
type cluster struct {
	*stack.Stack
	machines []*node // servers first
	stranger *box.Machine
	keys     *keys.Keys
	environ  environment.Environment
	consul   *consulapi.Client // of the first server, with the operator's rights
	nomad    *nomadapi.Client
	displays *scenario.Fleet
	seller   *scenario.Owner // owns them
	market   *scenario.Market
	figures  scenario.Table
}

func bringUp(t *testing.T, ctx context.Context) *cluster {
	t.Helper()
	began := time.Now()
	say := func(line string) { fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), line) }
	root, err := tools.Root()
	require.NoError(t, err)
	b, err := box.Open(ctx)
	require.NoError(t, err)
	inner, err := b.Network(ctx, machinesCIDR)
	require.NoError(t, err)
	require.NoError(t, inner.CallFrom(ctx, operator))
	outer, err := b.Network(ctx, strangerCIDR)
	require.NoError(t, err)

	c := &cluster{
		environ: environment.Environment{Name: "namespaces"},
		figures: scenario.Table{Columns: []string{"what happens", "calls", "failed", "p50", "p99", "longest", "noticed after", "whole again after"}},
	}
	nodes := nodes()
	names := make([]keys.Node, len(nodes))
	for i, n := range nodes {
		names[i] = keys.Node{Name: n.Name, Role: n.Role, Address: n.Address}
		if n.Role == keys.Server {
			c.environ.Servers = append(c.environ.Servers, n.Address)
		} else {
			c.environ.Edge = append(c.environ.Edge, n.Address)
		}
	}
	c.keys, err = keys.Ensure("/run/keys", names, time.Now())
	require.NoError(t, err)
	postgres := findPostgres(t, ctx)
	files := map[string]string{"/usr/local/bin": findPrograms(t, ctx)}
	maps.Copy(files, postgres.files)
	services := allServices(t, root)
	for _, n := range nodes {
		n.Servers, n.Operators = c.environ.Servers, []string{operator + "/32"}
		if n.Role == keys.Client {
			n.Meta[machine.Data], n.DataJobs = "true", []string{nats}
		}
		if n.Name == dataNode {
			n.Chroot, n.DataJobs = postgres.chroot, stack.DataJobs(services)
		}
		c.add(t, inner, root, n, files)
	}
	c.stranger, err = outer.Machine(box.Config{Name: "stranger", Address: netip.MustParseAddr(stranger)})
	require.NoError(t, err)
	require.NoError(t, c.stranger.On(ctx))
	t.Cleanup(func() {
		if t.Failed() {
			c.printLogs(t)
		}
	})

	for _, n := range c.machines {
		c.switchOn(t, ctx, n, n.spec.Role == keys.Server)
	}
	say("the machines are on")
	env := c.operator(0)
	c.consul, err = env.Consul()
	require.NoError(t, err)
	c.nomad, err = env.Nomad()
	require.NoError(t, err)
	boot := bootstrap.Cluster{Consul: c.consul, Nomad: c.nomad, Keys: c.keys, Progress: say}
	require.NoError(t, bootstrap.Ensure(ctx, boot))
	for _, n := range c.clients() {
		c.start(t, ctx, n, "nomad")
	}
	require.NoError(t, bootstrap.WaitHealthy(ctx, boot, c.names(keys.Server), c.names(keys.Client)))
	say("the cluster is healthy")

	uploader, err := env.Artifacts()
	require.NoError(t, err)
	values := map[string]string{"gateway_devices": "true", "order_payments": "test", "nats_count": strconv.Itoa(clients)}
	for _, service := range services {
		if !service.KeepsData {
			values[strings.ReplaceAll(service.Name, "-", "_")+"_count"] = strconv.Itoa(wanted)
		}
	}
	c.Stack, err = stack.Open(stack.Config{
		Root: root,
		Target: stack.OnMachines(stack.Machines{
			Name: env.Name, Dir: "/run", Nomad: c.nomad, Consul: c.consul,
			Upload: uploader.Upload, Prune: uploader.Prune, PostgresBinDir: postgres.binDir,
		}),
		Services:      services,
		VariableFiles: []string{stack.ProductionVariables(root)},
		Variables:     values,
		Progress:      say,
	})
	require.NoError(t, err)
	require.NoError(t, c.Prepare(ctx))
	_, err = c.DeployAll(ctx)
	require.NoError(t, err)
	_, err = c.WaitServed(ctx, "/v1/signing-keys")
	require.NoError(t, err)
	say("the first call was served")
	return c
}

// allServices are the platform's, with those that other machines do not run: here
// displays need no certificate, and their media are elsewhere.
func allServices(t *testing.T, root string) []stack.Service {
	t.Helper()
	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	for i := range services {
		services[i].Local = false
	}
	return services
}

// nodes are the machines. All clients take gateways and services.
func nodes() []machine.Node {
	var all []machine.Node
	for i := range servers {
		all = append(all, machine.Node{
			Name: fmt.Sprintf("server-%d", i+1), Role: keys.Server, Address: fmt.Sprintf("10.88.0.%d", 11+i),
			Tuned: true,
		})
	}
	for i := range clients {
		n := machine.Node{
			Name: fmt.Sprintf("client-%d", i+1), Role: keys.Client, Address: fmt.Sprintf("10.88.0.%d", 21+i),
			Tuned: true, Interface: "eth0",
			Meta: map[string]string{"marquee_edge": "true", "marquee_services": "true"},
		}
		n.Public = n.Address
		all = append(all, n)
	}
	return all
}

// add makes one machine with its files; it is off.
func (c *cluster) add(t *testing.T, network *box.Network, root string, n machine.Node, shown map[string]string) {
	t.Helper()
	folders := []box.Folder{{Path: "/etc/marquee"}, {Path: "/etc/consul.d"}, {Path: "/etc/nomad.d"}, {Path: "/var/lib/consul"}, {Path: "/var/lib/marquee"}}
	disk := box.Folder{Path: "/var/lib/nomad"}
	if n.Role == keys.Client {
		disk.Limit = diskSize
	}
	made, err := network.Machine(box.Config{
		Name: n.Name, Address: netip.MustParseAddr(n.Address), Folders: append(folders, disk), Files: shown,
	})
	require.NoError(t, err)
	files, err := machine.Files(root, n, c.keys)
	require.NoError(t, err)
	// All of a host's libraries are much for a task; see findPostgres.
	delete(files, "/etc/nomad.d/data.hcl")
	require.NoError(t, machine.Write(made.Path("/"), n, files))
	c.machines = append(c.machines, &node{Machine: made, spec: n})
}

// findPrograms makes the folder that machines see as /usr/local/bin. They are
// copies: a task of the exec driver starts from its agent's program, of which
// the kernel wants a file that is where it seems to be, not one bound there.
func findPrograms(t *testing.T, ctx context.Context) (folder string) {
	t.Helper()
	built, err := release.Build(ctx, "artifactd")
	require.NoError(t, err)
	files := []string{built["artifactd"].Path}
	for _, tool := range []string{tools.Consul, tools.Nomad} {
		path, err := tools.Find(ctx, tool)
		require.NoError(t, err)
		files = append(files, path)
	}
	folder = "/run/programs"
	require.NoError(t, os.Mkdir(folder, 0o755))
	for _, file := range files {
		out, err := exec.CommandContext(ctx, "cp", file, folder).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return folder
}

// switchOn boots a machine. A client's Nomad starts only when there is a cluster
// to join.
func (c *cluster) switchOn(t *testing.T, ctx context.Context, n *node, nomad bool) {
	t.Helper()
	require.NoError(t, n.On(ctx))
	rules, err := os.ReadFile(n.Path("/etc/nftables.conf"))
	require.NoError(t, err)
	_, err = n.Run(ctx, string(rules), "nft", "-f", "-")
	require.NoError(t, err, "the firewall of %s", n.Name())
	for _, program := range machine.Commands(n.spec) {
		if program.Name != "nomad" || nomad {
			c.start(t, ctx, n, program.Name)
		}
	}
}

// start starts one of the machine's programs, as its systemd would.
func (c *cluster) start(t *testing.T, ctx context.Context, n *node, program string) {
	t.Helper()
	for _, command := range machine.Commands(n.spec) {
		if command.Name == program {
			require.NoError(t, n.Start(ctx, program, []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}, command.Args...))
			return
		}
	}
	require.FailNow(t, "no such program", "%s on %s", program, n.Name())
}

func (c *cluster) clients() []*node { return c.machines[servers:] }

func (c *cluster) names(role keys.Role) []string {
	var names []string
	for _, n := range c.machines {
		if n.spec.Role == role {
			names = append(names, n.Name())
		}
	}
	return names
}

// operator is the environment as seen through one of the servers.
func (c *cluster) operator(server int) *environment.Environment {
	e := c.environ
	e.ConsulAddr = "https://" + c.environ.Servers[server] + ":8501"
	e.NomadAddr = "https://" + c.environ.Servers[server] + ":4646"
	return environment.New(e, c.keys)
}

// instance is a healthy one in Consul, with the id by which it answers.
type instance struct{ id, node string }

// allocation is the part of a service's id in Consul that names it.
var allocation = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// instances are the healthy ones of a service.
func (c *cluster) instances(ctx context.Context, service string) ([]instance, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	entries, _, err := c.consul.Health().Service(service, "", true, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	var found []instance
	for _, e := range entries {
		found = append(found, instance{service + "-" + allocation.FindString(e.Service.ID), e.Node.Node})
	}
	return found, err
}

// without waits until none of the healthy instances are on a machine, and then
// until there are as many as wanted. It returns how long both took.
func (c *cluster) without(t *testing.T, ctx context.Context, machine string, limit time.Duration) (excluded, replaced time.Duration) {
	t.Helper()
	began := time.Now()
	scenario.Eventually(ctx, t, limit, "no instance on "+machine+" is healthy", func() error {
		return c.each(ctx, func(service string, found []instance) error {
			if slices.ContainsFunc(found, func(i instance) bool { return i.node == machine }) {
				return fmt.Errorf("one of %s is", service)
			}
			return nil
		})
	})
	excluded = time.Since(began)
	scenario.Eventually(ctx, t, limit-excluded, "other machines have all instances", func() error {
		return c.each(ctx, func(service string, found []instance) error {
			if len(found) != wanted || slices.ContainsFunc(found, func(i instance) bool { return i.node == machine }) {
				return fmt.Errorf("%s has %v", service, found)
			}
			return nil
		})
	})
	return excluded, time.Since(began)
}

// each looks at the services that have several instances.
func (c *cluster) each(ctx context.Context, look func(service string, found []instance) error) error {
	for _, service := range c.Services() {
		if service.KeepsData {
			continue
		}
		found, err := c.instances(ctx, service.Name)
		if err == nil {
			err = look(service.Name, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// whole says whether every machine is up and takes jobs, and each service has
// the instances it should, no more and no less.
func (c *cluster) whole(ctx context.Context) error {
	boot := bootstrap.Cluster{Consul: c.consul, Nomad: c.nomad, Keys: c.keys}
	if err := bootstrap.Healthy(ctx, boot, c.names(keys.Server), c.names(keys.Client)); err != nil {
		return err
	}
	if err := c.each(ctx, func(service string, found []instance) error {
		if len(found) != wanted {
			return fmt.Errorf("%s has %d healthy instances", service, len(found))
		}
		return nil
	}); err != nil {
		return err
	}
	allocs, _, err := c.nomad.Allocations().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	running := map[string]int{}
	for _, a := range allocs {
		switch a.ClientStatus {
		case nomadapi.AllocClientStatusRunning:
			running[a.JobID]++
		case nomadapi.AllocClientStatusPending, nomadapi.AllocClientStatusUnknown:
			return fmt.Errorf("%s of %s is %s", jobs.Short(a.ID), a.JobID, a.ClientStatus)
		}
	}
	for _, service := range c.Services() {
		if running[service.Name] != instancesOf(service) {
			return fmt.Errorf("instances run: %v", running)
		}
	}
	_, err = c.events(ctx)
	return err
}

// instancesOf is how many instances of a job there should be.
func instancesOf(service stack.Service) int {
	switch {
	case service.Name == nats:
		return clients
	case service.KeepsData:
		return 1
	}
	return wanted
}

// settle waits until the cluster is whole.
func (c *cluster) settle(t *testing.T, ctx context.Context) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, settleBound, "the cluster is whole", func() error { return c.whole(ctx) })
}

// victim is a machine, other than that with the data, that has an instance of
// everything of which there are several.
func (c *cluster) victim(t *testing.T, ctx context.Context) *node {
	t.Helper()
	var candidates []*node
	for _, n := range c.clients() {
		if n.Name() != dataNode {
			candidates = append(candidates, n)
		}
	}
	complete := func() *node {
		has, several := map[string]int{}, 0
		require.NoError(t, c.each(ctx, func(_ string, found []instance) error {
			several++
			for _, i := range found {
				has[i.node]++
			}
			return nil
		}))
		for _, n := range candidates {
			if has[n.Name()] == several {
				return n
			}
		}
		return nil
	}
	if n := complete(); n != nil {
		return n
	}
	// Instances are never two to a machine while there is another: when one of
	// the candidates is empty, the other has all that it can have.
	t.Logf("gathering instances")
	draining, cancel := context.WithTimeout(ctx, drainBound)
	defer cancel()
	require.NoError(t, c.Jobs().Drain(draining, candidates[0].Name(), time.Minute, false, nil))
	require.NoError(t, c.Jobs().SetEligible(ctx, candidates[0].Name(), true))
	c.settle(t, ctx)
	n := complete()
	require.NotNil(t, n, "a machine with an instance of everything")
	return n
}

// logsVariable names a folder for all logs of a run that fails; what is printed
// are their last lines.
const logsVariable = "MARQUEE_E2E_LOGS"

// printLogs prints what everything logged last.
func (c *cluster) printLogs(t *testing.T) {
	t.Helper()
	if folder := os.Getenv(logsVariable); folder != "" {
		script := `cd /run/box && for m in client-* server-*; do mkdir -p "$0/$m" && cp $m/log/* "$0/$m/" && cp $m/disk/var/lib/nomad/alloc/*/alloc/logs/*.0 "$0/$m/" 2>/dev/null; done`
		out, err := exec.Command("sh", "-c", script, folder).CombinedOutput()
		t.Logf("all logs are in %s: %v %s", folder, err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if c.Stack != nil {
		for _, s := range c.Services() {
			var out bytes.Buffer
			err := c.Jobs().Logs(ctx, s.Name, jobs.LogOptions{Lines: 40}, &out)
			t.Logf("logs of %s: %v\n%s", s.Name, err, out.String())
		}
	}
	for _, n := range c.machines {
		for _, program := range machine.Commands(n.spec) {
			text, err := os.ReadFile(n.Log(program.Name))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			lines := strings.Split(string(text), "\n")
			t.Logf("log of %s on %s: %v\n%s", program.Name, n.Name(), err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	}
}

// openDoors connects to the doors of these machines as a client that knows their
// addresses: it is told nothing of what happens to them.
func (c *cluster) openDoors(t *testing.T, machines ...*node) *scenario.Accounts {
	t.Helper()
	return c.doors(t, machines...).Accounts()
}

func (c *cluster) doors(t *testing.T, machines ...*node) scenario.Doors {
	t.Helper()
	var gateways []stack.Gateway
	for _, n := range machines {
		gateways = append(gateways, stack.Gateway{
			HTTP: fmt.Sprintf("%s:%d", n.Address(), httpPort), GRPC: fmt.Sprintf("%s:%d", n.Address(), grpcPort),
		})
	}
	return scenario.OpenDoors(t, gateways)
}

// rateVariable is the calls a second, for hosts too busy or too small for those
// of scenario.Accounts.
const rateVariable = "MARQUEE_E2E_RATE"

// underLoad makes a fault under load: the load goes on for a while before and
// after, and no call may fail.
func (c *cluster) underLoad(t *testing.T, ctx context.Context, fault string, act func() (noticed, whole time.Duration)) {
	t.Helper()
	d := c.openDoors(t, c.clients()...)
	plan := d.Mixed(ctx, t)
	if rate := os.Getenv(rateVariable); rate != "" {
		var err error
		plan.Rate, err = strconv.Atoi(rate)
		require.NoError(t, err, rateVariable)
	}
	running := load.Start(ctx, plan)
	scenario.AtLeast(ctx, t, running, 400)
	noticed, whole := act()
	calls, _ := running.Snapshot()
	scenario.AtLeast(ctx, t, running, calls+400)
	report := running.Stop()
	t.Log(report)
	c.figures.Add(fault, strconv.Itoa(report.Calls), strconv.Itoa(len(report.Failed)),
		milliseconds(report.Quantile(.5)), milliseconds(report.Quantile(.99)), milliseconds(report.Longest()), seconds(noticed), seconds(whole))
	require.Empty(t, report.Failed, "no call may fail")
	d.Check(ctx, t)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

// seconds is nothing for what was not measured.
func seconds(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// stop ends a program of a machine with a signal.
func (c *cluster) stop(t *testing.T, ctx context.Context, n *node, program string, signal syscall.Signal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	require.NoError(t, n.Stop(ctx, program, signal))
}

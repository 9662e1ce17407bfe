package vms

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
	"github.com/marquee-ads/marquee/platform/vms"
	"github.com/marquee-ads/marquee/platform/vms/box"
)

// name of the environment: not that of make vms, which may run beside it.
const name = "e2e-vms"

// network is not that of make vms either, so that a mix-up shows.
const network = "10.78.0.0/24"

// What each step may take on two cores under emulation, five times what it does.
const (
	upLimit      = 12 * time.Minute
	deployLimit  = 8 * time.Minute
	drainLimit   = 4 * time.Minute
	destroyLimit = 2 * time.Minute
	// toDestroy is kept from the test's own time for the end.
	toDestroy = destroyLimit + 30*time.Second
)

// marquee is the command that make e2e-vms has built.
func marquee(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	program := filepath.Join(root, ".marquee", "bin", "marquee")
	require.FileExists(t, program, "make marquee builds it")
	return program
}

// run runs marquee, with its progress in the test's log. An error has the last
// line of that.
func run(t *testing.T, limit time.Duration, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, marquee(t), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 40 * time.Second
	progress, err := cmd.StderrPipe()
	require.NoError(t, err)
	var out bytes.Buffer
	cmd.Stdout = &out
	start := time.Now()
	require.NoError(t, cmd.Start())
	lines, last := bufio.NewScanner(progress), ""
	for lines.Scan() {
		last = lines.Text()
		t.Logf("%s: %s", strings.Join(args[:min(4, len(args))], " "), last)
	}
	if err = cmd.Wait(); err != nil {
		err = fmt.Errorf("%w: %s", err, last)
	}
	t.Logf("marquee %s took %.1f s", strings.Join(args, " "), time.Since(start).Seconds())
	if ctx.Err() != nil {
		err = fmt.Errorf("marquee %s took longer than %s", strings.Join(args, " "), limit)
	}
	return out.Bytes(), err
}

// deadline is the test's end, less what it takes to clean up.
func deadline(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	end, ok := t.Deadline()
	require.True(t, ok, "run this with -timeout: make e2e-vms does")
	return context.WithDeadline(t.Context(), end.Add(-toDestroy))
}

// TestVMs makes the machines, runs the scenarios in their network, and destroys
// them.
func TestVMs(t *testing.T) {
	if os.Getenv(box.InsideVariable) != "" {
		t.Skip("this is the part outside of the box")
	}
	if os.Getenv("MARQUEE_E2E_VMS") == "" {
		t.Skip("it makes virtual machines for a quarter of an hour: make e2e-vms")
	}
	root, err := tools.Root()
	require.NoError(t, err)
	servers := "1"
	if want := os.Getenv("MARQUEE_E2E_SERVERS"); want != "" {
		servers = want
	}
	destroy := func() {
		_, err := run(t, destroyLimit, "vms", "--env", name, "destroy")
		require.NoError(t, err)
	}
	destroy() // what a killed run left
	t.Cleanup(destroy)
	links := interfaces(t)

	// What is half made is finished by a second call.
	interrupted(t, "--servers", servers)
	out, err := run(t, upLimit, "vms", "--env", name, "up", "--servers", servers, "--clients", "2", "--network", network, "--json")
	require.NoError(t, err)
	var up struct {
		Healthy  bool          `json:"healthy"`
		Seconds  float64       `json:"seconds"`
		Machines []vms.Machine `json:"machines"`
	}
	require.NoError(t, json.Unmarshal(out, &up), "%s", out)
	require.True(t, up.Healthy)
	t.Logf("%d machines are a cluster after %.0f s", len(up.Machines), up.Seconds)
	require.Equal(t, links, interfaces(t), "the host has no interface more")

	ctx, cancel := deadline(t)
	defer cancel()
	inside(t, ctx, root)
	if t.Failed() {
		return
	}

	destroy()
	require.NoDirExists(t, environment.Folder(root, name))
	require.Empty(t, processes(t, environment.Folder(root, name)), "no process is left")
	require.Equal(t, links, interfaces(t), "no interface is left")
}

// interrupted begins to make the machines and is interrupted while Terraform is
// at it.
func interrupted(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), upLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, marquee(t), append([]string{"vms", "--env", name, "up", "--clients", "2", "--network", network}, args...)...)
	progress, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines, once := bufio.NewScanner(progress), sync.Once{}
	said := ""
	for lines.Scan() {
		t.Log("to be interrupted: " + lines.Text())
		said += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "libvirt_volume") {
			once.Do(func() { require.NoError(t, cmd.Process.Signal(os.Interrupt)) })
		}
	}
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 1, exit.ExitCode())
	require.Contains(t, said, "marquee vms up goes on with it")
}

// stepsVariable says which steps are run in place of all: a pattern of go test -run.
const stepsVariable = "MARQUEE_E2E_STEPS"

// inside runs the rest of the test in the network of the machines.
func inside(t *testing.T, ctx context.Context, root string) {
	t.Helper()
	b, err := box.New(filepath.Join(environment.Folder(root, name), "box"))
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	end, _ := ctx.Deadline()
	run := "^TestInside$"
	if steps := os.Getenv(stepsVariable); steps != "" {
		run += "/^(LogIn|Deploy|SignUpAndLogIn|" + steps + ")$" // nothing goes without these
	}
	cmd, err := b.Enter(ctx, self, "-test.run="+run, "-test.v", "-test.timeout="+time.Until(end).String())
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	require.NoError(t, cmd.Run(), "the scenarios in the machines' network")
}

func interfaces(t *testing.T) []string {
	t.Helper()
	found, err := net.Interfaces()
	require.NoError(t, err)
	var names []string
	for _, i := range found {
		names = append(names, i.Name)
	}
	return names
}

// processes are the command lines that name a folder.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// room is the cluster as the scenarios see it, from inside of its network.
type room struct {
	env   *environment.Environment
	nodes []keys.Node
}

// TestInside is the part of TestVMs that reaches the machines.
func TestInside(t *testing.T) {
	if os.Getenv(box.InsideVariable) == "" {
		t.Skip("TestVMs runs this in the machines' network")
	}
	root, err := tools.Root()
	require.NoError(t, err)
	made, err := vms.Open(vms.Config{Root: root, Name: name})
	require.NoError(t, err)
	env, err := environment.Load(root, name)
	require.NoError(t, err)
	r := &room{env: env, nodes: made.Nodes()}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(28*time.Minute))
	defer cancel()

	for _, step := range []struct {
		name string
		run  func(*testing.T, context.Context)
	}{
		{"ApplyAgainChangesNothing", r.noChanges},
		{"LogIn", r.logIn},
		{"Deploy", r.deploy},
		{"SignUpAndLogIn", r.signUp},
		{"OpenPorts", r.openPorts},
		{"LoseAMachine", r.loseAMachine},
		{"BackAgainChangesNothing", r.noChanges},
		{"ReplaceAMachine", r.replaceAMachine},
		{"ReplacedChangesNothing", r.noChanges},
		{"OneMoreAndOneLess", r.oneMoreAndOneLess},
		{"OneLessChangesNothing", r.noChanges},
		{"DrainTheData", r.drainTheData},
		{"LoseTheData", r.loseTheData},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, ctx) }) {
			r.consoles(t, made)
			return
		}
	}
}

// consoles prints what the machines and the services that are called said last.
func (r *room) consoles(t *testing.T, made *vms.Environment) {
	t.Helper()
	for _, job := range []string{"gateway", "account", "account-db"} {
		text, err := run(t, time.Minute, "jobs", "logs", job, "--env", name, "--lines", "60")
		t.Logf("logs of %s (%v):\n%s", job, err, text)
	}
	for _, n := range r.nodes {
		text, err := os.ReadFile(made.SerialLog(n.Name))
		t.Logf("%s's console ends with (%v):\n%s", n.Name, err, text[max(0, len(text)-1500):])
	}
}

func (r *room) noChanges(t *testing.T, _ context.Context) {
	out, err := run(t, 4*time.Minute, "vms", "--env", name, "plan")
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "Nothing would be changed")
}

// logIn logs in to every machine with the operator's key, which another key does
// not do.
func (r *room) logIn(t *testing.T, ctx context.Context) {
	other := filepath.Join(t.TempDir(), "key")
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, n := range r.nodes {
		out, err := run(t, time.Minute, "vms", "--env", name, "ssh", n.Name, "hostname")
		require.NoError(t, err, "%s", out)
		require.Equal(t, n.Name+"\n", string(out))
		requireRefused(t, ctx, other, n)
	}
}

// hostname logs in to a machine with a key and has it say its name.
func hostname(ctx context.Context, key string, n keys.Node) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@"+n.Address, "hostname")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("log in to %s with %s: %w: %s", n.Name, key, err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func requireAccepted(t *testing.T, ctx context.Context, key string, n keys.Node) {
	t.Helper()
	said, err := hostname(ctx, key, n)
	require.NoError(t, err)
	require.Equal(t, n.Name, said)
}

func requireRefused(t *testing.T, ctx context.Context, key string, n keys.Node) {
	t.Helper()
	_, err := hostname(ctx, key, n)
	require.ErrorContains(t, err, "Permission denied (publickey)", n.Name)
}

// deploy runs the jobs. An emulated machine that is busy may miss the jobs'
// deadlines; then a second call must finish what the first began.
func (r *room) deploy(t *testing.T, _ context.Context) {
	_, err := run(t, deployLimit, "jobs", "deploy", "--env", name)
	if err != nil {
		t.Logf("a second time, because: %v", err)
		_, err = run(t, deployLimit, "jobs", "deploy", "--env", name)
	}
	require.NoError(t, err)
}

// doors are the gateways' doors on these machines.
func doors(t *testing.T, addresses ...string) scenario.Doors {
	t.Helper()
	var gateways []stack.Gateway
	for _, a := range addresses {
		gateways = append(gateways, stack.Gateway{HTTP: net.JoinHostPort(a, "8080"), GRPC: net.JoinHostPort(a, "8081")})
	}
	return scenario.OpenDoors(t, gateways)
}

// serves waits until every machine of the edge does.
func (r *room) serves(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, address := range r.env.Edge {
		door := doors(t, address).REST
		scenario.Eventually(ctx, t, 5*time.Minute, address+" serves", func() error {
			_, err := door.Do(ctx, load.Request{Method: "GET", Path: "/v1/signing-keys", Idempotent: true}, nil)
			return err
		})
	}
}

// signUp waits until every machine of the edge serves, makes an account through
// them and logs in to it.
func (r *room) signUp(t *testing.T, ctx context.Context) {
	r.serves(t, ctx)
	rest := doors(t, r.env.Edge...).REST
	id := fmt.Sprintf("somebody-%d", time.Now().UnixNano())
	account := id + "@example.com"
	var made struct {
		Account struct {
			AccountID string `json:"accountId"`
		} `json:"account"`
	}
	scenario.Eventually(ctx, t, time.Minute, "somebody can sign up through the edge", func() error {
		_, err := rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/accounts", Idempotent: true, Body: map[string]string{
			"requestId": id, "name": account, "password": scenario.Password,
		}}, &made)
		return err
	})
	require.NotEmpty(t, made.Account.AccountID)
	var in struct {
		AccessToken string `json:"accessToken"`
	}
	_, err := rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/sessions", Body: map[string]string{
		"name": account, "password": scenario.Password,
	}}, &in)
	require.NoError(t, err)
	var me struct {
		Account struct {
			AccountID string `json:"accountId"`
		} `json:"account"`
	}
	_, err = rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/accounts/me", Token: in.AccessToken, Idempotent: true}, &me)
	require.NoError(t, err)
	require.Equal(t, made.Account.AccountID, me.Account.AccountID)
	_, err = rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/sessions", Body: map[string]string{
		"name": account, "password": "another pass phrase",
	}}, nil)
	var problem *load.ProblemError
	require.ErrorAs(t, err, &problem)
	require.Equal(t, 401, problem.HTTPStatus)
}

// loseAMachine destroys the client without the database under load, which goes
// on; then it is made again and everything is as before.
func (r *room) loseAMachine(t *testing.T, ctx context.Context) {
	const victim, other = "client-2", "client-1"
	nomad, err := r.env.Nomad()
	require.NoError(t, err)
	state := func(node string) (string, string, error) {
		nodes, _, err := nomad.Nodes().List(nil)
		if err != nil {
			return "", "", err
		}
		for _, n := range nodes {
			if n.Name == node && n.Status == "ready" {
				return n.ID, n.Status, nil
			}
		}
		return "", "not ready", nil
	}
	before, _, err := state(victim)
	require.NoError(t, err)
	require.NotEmpty(t, before)

	// Callers know both doors. An emulated machine answers some twenty calls a
	// second while it also starts tasks.
	edge := doors(t, r.node(t, other).Address, r.node(t, victim).Address)
	plan := load.Plan{Rate: 10, Timeout: 30 * time.Second, Ops: edge.Accounts().KeyReads()[:1]}
	running := load.Start(ctx, plan)
	scenario.AtLeast(ctx, t, running, 100)

	out, err := exec.CommandContext(ctx, marquee(t), "vms", "--env", name, "exec", "virsh", "destroy", name+"-"+victim).CombinedOutput()
	require.NoError(t, err, "%s", out)
	noticed := scenario.Eventually(ctx, t, 3*time.Minute, "Nomad sees that "+victim+" is down", func() error {
		_, status, err := state(victim)
		if err == nil && status == "ready" {
			err = errors.New("it is ready")
		}
		return err
	})
	calls, _ := running.Snapshot()
	scenario.AtLeast(ctx, t, running, calls+100)
	report := running.Stop()
	t.Logf("%s was destroyed, Nomad knew after %.1f s:\n%s", victim, noticed.Seconds(), report)
	require.Empty(t, report.Failed, "no call that may be repeated failed")

	planned, err := run(t, 4*time.Minute, "vms", "--env", name, "plan")
	require.Error(t, err, "the plan sees that it is missing")
	require.Contains(t, string(planned), victim)
	_, err = run(t, upLimit, "vms", "--env", name, "up")
	require.NoError(t, err)
	after, status, err := state(victim)
	require.NoError(t, err)
	require.Equal(t, "ready", status)
	require.Equal(t, before, after, "it is the same node, with its data")
	r.signUp(t, ctx)
}

// node is the machine of a name.
func (r *room) node(t *testing.T, called string) keys.Node {
	t.Helper()
	at := slices.IndexFunc(r.nodes, func(n keys.Node) bool { return n.Name == called })
	require.GreaterOrEqual(t, at, 0, called)
	return r.nodes[at]
}

// asNomadHas is a machine as Nomad has it, with what runs there.
func (r *room) asNomadHas(t *testing.T, ctx context.Context, called string) jobs.Node {
	t.Helper()
	nomad, err := r.env.Nomad()
	require.NoError(t, err)
	consul, err := r.env.Consul()
	require.NoError(t, err)
	nodes, err := jobs.New(nomad, consul).Nodes(ctx)
	require.NoError(t, err)
	var found *jobs.Node
	for _, n := range nodes {
		// One that had another disk before is known twice.
		if n.Name == called && (found == nil || n.Status == "ready") {
			found = &n
		}
	}
	require.NotNil(t, found, called)
	return *found
}

// replaceAMachine rotates the operator's key for SSH, drains the client without
// the database, replaces it and lets it take instances again, all under load and
// as docs/operations.md says. The machine then knows the new key alone, and those
// that were not replaced the old one.
func (r *room) replaceAMachine(t *testing.T, ctx context.Context) {
	victim, other := r.node(t, "client-2"), r.node(t, "client-1")
	now := r.env.Keys().SSHKeyFile()
	text, err := os.ReadFile(now)
	require.NoError(t, err)
	old := filepath.Join(t.TempDir(), "old")
	require.NoError(t, os.WriteFile(old, text, 0o600))
	_, err = run(t, 3*time.Minute, "keys", "--env", name, "rotate", "ssh")
	require.NoError(t, err)
	requireAccepted(t, ctx, old, victim)
	requireRefused(t, ctx, now, victim)
	planned, err := run(t, 4*time.Minute, "vms", "--env", name, "plan")
	require.Error(t, err, "the plan names the machines with the old key")
	require.Regexp(t, `(?s)outdated.*"`+victim.Name+`"`, string(planned))

	before := r.asNomadHas(t, ctx, victim.Name)
	require.NotEmpty(t, before.Instances)
	_, err = run(t, time.Minute, "nodes", "drain", other.Name, "--env", name)
	require.ErrorContains(t, err, "only it has the data of account-db")
	require.True(t, r.asNomadHas(t, ctx, other.Name).Eligible)

	// Fewer calls than when a machine is lost, for one starts meanwhile.
	const rate, timeout = 5, 30
	edge := doors(t, other.Address, victim.Address)
	running := load.Start(ctx, load.Plan{
		Rate: rate, Timeout: timeout * time.Second, MaxInFlight: rate * timeout, Ops: edge.Accounts().KeyReads()[:1],
	})
	defer running.Stop()
	scenario.AtLeast(ctx, t, running, 50)

	_, err = run(t, drainLimit, "nodes", "drain", victim.Name, "--env", name)
	require.NoError(t, err)
	drained := r.asNomadHas(t, ctx, victim.Name)
	require.Empty(t, drained.Instances)
	require.False(t, drained.Eligible)

	_, err = run(t, upLimit, "vms", "--env", name, "replace", victim.Name)
	require.NoError(t, err)
	replaced := r.asNomadHas(t, ctx, victim.Name)
	require.Equal(t, before.ID, replaced.ID, "it is the same node, with its data")
	require.Equal(t, "ready", replaced.Status)
	require.False(t, replaced.Eligible, "it takes instances before it is told to")
	require.Empty(t, replaced.Instances)

	out, err := run(t, time.Minute, "vms", "--env", name, "ssh", victim.Name, "hostname")
	require.NoError(t, err)
	require.Equal(t, victim.Name+"\n", string(out))
	requireRefused(t, ctx, old, victim)
	requireAccepted(t, ctx, old, other)
	requireRefused(t, ctx, now, other)

	_, err = run(t, time.Minute, "nodes", "eligibility", victim.Name, "on", "--env", name)
	require.NoError(t, err)
	// No other machine has a gateway's ports free.
	let := time.Now()
	r.serves(t, ctx)
	took := time.Since(let)
	scenario.More(ctx, t, running, 50)
	report := running.Stop()
	t.Logf("%s was drained and replaced, and served again %.1f s after it was let:\n%s", victim.Name, took.Seconds(), report)
	require.Empty(t, report.Failed, "no call that may be repeated failed")
	require.NotEmpty(t, r.asNomadHas(t, ctx, victim.Name).Instances)
	r.signUp(t, ctx)
}

// oneMoreAndOneLess adds a client to the cluster, gives it another disk, and takes
// it away again, under load.
func (r *room) oneMoreAndOneLess(t *testing.T, ctx context.Context) {
	const added = "client-3"
	const rate, timeout = 5, 30
	edge := doors(t, r.env.Edge...)
	running := load.Start(ctx, load.Plan{
		Rate: rate, Timeout: timeout * time.Second, MaxInFlight: rate * timeout, Ops: edge.Accounts().KeyReads()[:1],
	})
	defer running.Stop()
	scenario.AtLeast(ctx, t, running, 50)

	_, err := run(t, upLimit, "vms", "--env", name, "up", "--clients", "3")
	require.NoError(t, err)
	more := r.asNomadHas(t, ctx, added)
	require.Equal(t, "ready", more.Status)
	require.True(t, more.Eligible)
	_, err = run(t, upLimit, "vms", "--env", name, "replace", added, "--disk")
	require.NoError(t, err)
	another := r.asNomadHas(t, ctx, added)
	require.Equal(t, "ready", another.Status)
	require.NotEqual(t, more.ID, another.ID, "it knows nothing of its old disk")

	_, err = run(t, drainLimit, "nodes", "drain", added, "--env", name)
	require.NoError(t, err)
	_, err = run(t, upLimit, "vms", "--env", name, "up", "--clients", "2")
	require.NoError(t, err)
	gone := scenario.Eventually(ctx, t, 3*time.Minute, "Nomad sees that "+added+" is gone", func() error {
		if r.asNomadHas(t, ctx, added).Status == "ready" {
			return errors.New("it is ready")
		}
		return nil
	})
	scenario.More(ctx, t, running, 50)
	report := running.Stop()
	t.Logf("%s was added and taken away, which Nomad saw after %.1f s:\n%s", added, gone.Seconds(), report)
	require.Empty(t, report.Failed, "no call that may be repeated failed")
}

// drainTheData drains the machine that alone has the database's data, and lets it
// have the database back.
func (r *room) drainTheData(t *testing.T, ctx context.Context) {
	const victim = "client-1"
	before := r.asNomadHas(t, ctx, victim)
	_, err := run(t, drainLimit, "nodes", "drain", victim, "--with-data", "--env", name)
	require.NoError(t, err)
	drained := r.asNomadHas(t, ctx, victim)
	require.Empty(t, drained.Instances)
	require.False(t, drained.Eligible)
	_, err = run(t, time.Minute, "nodes", "eligibility", victim, "on", "--env", name)
	require.NoError(t, err)
	r.signUp(t, ctx)
	require.Equal(t, before.ID, r.asNomadHas(t, ctx, victim).ID)
}

// loseTheData destroys the machine that alone has the database's data. The database
// waits for it, and serves again when it is back.
func (r *room) loseTheData(t *testing.T, ctx context.Context) {
	const victim = "client-1"
	out, err := exec.CommandContext(ctx, marquee(t), "vms", "--env", name, "exec", "virsh", "destroy", name+"-"+victim).CombinedOutput()
	require.NoError(t, err, "%s", out)
	scenario.Eventually(ctx, t, 3*time.Minute, "Nomad sees that "+victim+" is away", func() error {
		if r.asNomadHas(t, ctx, victim).Status == "ready" {
			return errors.New("it is ready")
		}
		return nil
	})
	_, err = run(t, upLimit, "vms", "--env", name, "up")
	require.NoError(t, err)
	began := time.Now()
	r.signUp(t, ctx)
	t.Logf("an account was made %.1f s after %s was back", time.Since(began).Seconds(), victim)
}

// openPorts tries every port of every machine from an address outside of the
// cluster's network, and compares with what docs/operations.md says.
func (r *room) openPorts(t *testing.T, ctx context.Context) {
	root, err := tools.Root()
	require.NoError(t, err)
	written, err := scenario.WrittenPorts(root)
	require.NoError(t, err)
	// TEST-NET-3: nobody's. Only this box's network has it.
	outsider := net.IPv4(203, 0, 113, 7)
	out, err := exec.CommandContext(ctx, "ip", "address", "replace", outsider.String()+"/32", "dev", "lo").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, n := range r.nodes {
		roles := []string{"servers"}
		if n.Role == keys.Client {
			roles = []string{"clients", "edge"}
		}
		var may []int
		for port := 1; port < 1<<16; port++ {
			if written.TCP(port, "everyone", roles...) {
				may = append(may, port)
			}
		}
		found := scan(t, ctx, outsider, n.Address)
		t.Logf("%s: open from outside: %v, of %v", n.Name, found, may)
		for _, port := range found {
			require.Contains(t, may, port, "%s has a port open to the world that is not written down", n.Name)
		}
		if slices.Contains(r.env.Edge, n.Address) {
			require.Contains(t, found, 8080, "the door of %s is open", n.Name)
		}
		// The scan does see ports that are open to somebody else.
		if n.Role == keys.Server {
			require.NotContains(t, found, 22)
			require.True(t, knock(ctx, nil, n.Address, 22), "the operator reaches ssh on %s", n.Name)
		}
	}
}

// atOnce is how many ports are tried at once, and patience how long an answer of
// a machine on the same host may take: a firewall that drops gives none.
const (
	atOnce   = 4096
	patience = 1500 * time.Millisecond
)

func scan(t *testing.T, ctx context.Context, from net.IP, address string) []int {
	t.Helper()
	var mu sync.Mutex
	var found []int
	var group sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for port := 1; port < 1<<16; port++ {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if knock(ctx, from, address, port) {
				mu.Lock()
				defer mu.Unlock()
				found = append(found, port)
			}
		})
	}
	group.Wait()
	slices.Sort(found)
	return found
}

// knock says whether a port answers a connection from an address; nil is any.
func knock(ctx context.Context, from net.IP, address string, port int) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	if from != nil {
		d.LocalAddr = &net.TCPAddr{IP: from}
	}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestMain(m *testing.M) {
	// Thousands of connections are tried at once.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			_, _ = io.WriteString(os.Stderr, "the port scan may run out of files: "+err.Error()+"\n")
		}
	}
	os.Exit(m.Run())
}

package machine

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/cluster/box"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/machine"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	network  = "10.90.0.0/24"
	operator = "10.91.0.1"
	server   = "10.90.0.11"
	client   = "10.90.0.21"
	// runBound is for all; it takes about a fifth of it.
	runBound = 4 * time.Minute
	// waitsVariable tells the box where the task's program is.
	waitsVariable = "MARQUEE_TEST_WAITS"
)

func TestMain(m *testing.M) {
	box.Main()
	os.Exit(m.Run())
}

// The names of the tests that run in the box are this one's subtests.
func TestMachines(t *testing.T) {
	if box.Inside() {
		inside(t)
		return
	}
	scenario.NeedRoot(t, map[string]string{"ip": "apt-get install iproute2", "nft": "apt-get install nftables"})
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, tool := range []string{tools.Consul, tools.Nomad} {
		_, err := tools.Ensure(ctx, tool, func(line string) { fmt.Println("  " + line) })
		require.NoError(t, err)
	}
	_, err := release.Build(ctx, "artifactd")
	require.NoError(t, err)
	waits := filepath.Join(t.TempDir(), "waits")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", waits, "./testdata/waits")
	build.Env = tools.GoEnv("CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Setenv(waitsVariable, waits)
	limited, cancel := context.WithTimeout(ctx, runBound)
	defer cancel()
	err = box.Run(limited, os.Stdout, "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.count=1", "-test.timeout="+runBound.String())
	if errors.Is(err, box.ErrForbidden) {
		t.Skip("root may not make namespaces here: run this outside the container, or in one that is privileged")
	}
	require.NoError(t, err, "see the output above")
}

// room is the two machines.
type room struct {
	server, client *box.Machine
	specs          map[*box.Machine]machine.Node
	keys           *keys.Keys
	env            *environment.Environment
	consul         *consulapi.Client // of the operator
	nomad          *nomadapi.Client
	cluster        bootstrap.Cluster
}

func inside(t *testing.T) {
	r := build(t)
	t.Run("TLS", r.testTLS)
	t.Run("Gossip", r.testGossip)
	t.Run("DefaultDeny", r.testDefaultDeny)
	t.Run("AgentToken", r.testAgentToken)
	t.Run("NomadTokens", r.testNomadTokens)
	t.Run("Artifacts", r.testArtifacts)
	t.Run("WorkloadIdentity", r.testWorkloadIdentity)
	t.Run("DataChroot", r.testDataChroot)
	t.Run("EnsureAgain", r.testEnsureAgain)
	t.Run("Rotate", r.testRotate)
}

// build switches two machines on and makes them a cluster.
func build(t *testing.T) *room {
	ctx := t.Context()
	b, err := box.Open(ctx)
	require.NoError(t, err)
	inner, err := b.Network(ctx, network)
	require.NoError(t, err)
	require.NoError(t, inner.CallFrom(ctx, operator))

	r := &room{specs: map[*box.Machine]machine.Node{}}
	specs := []machine.Node{
		{Name: "server-1", Role: keys.Server, Address: server},
		{
			Name: "client-1", Role: keys.Client, Address: client, Pool: "services",
			Meta: map[string]string{machine.Services: "true", machine.Data: "true"},
		},
	}
	r.keys, err = keys.Ensure("/run/keys", []keys.Node{
		{Name: "server-1", Role: keys.Server, Address: server}, {Name: "client-1", Role: keys.Client, Address: client},
	}, time.Now())
	require.NoError(t, err)
	programs := programs(t)
	for i, into := range []**box.Machine{&r.server, &r.client} {
		n := specs[i]
		n.Servers, n.Operators, n.Tuned = []string{server}, []string{operator + "/32"}, true
		made, err := inner.Machine(box.Config{
			Name: n.Name, Address: netip.MustParseAddr(n.Address),
			Folders: []box.Folder{{Path: "/etc/marquee"}, {Path: "/etc/consul.d"}, {Path: "/etc/nomad.d"}, {Path: "/var/lib/consul"}, {Path: "/var/lib/nomad"}, {Path: "/var/lib/marquee"}},
			Files:   map[string]string{"/usr/local/bin": programs},
		})
		require.NoError(t, err)
		r.specs[made] = n
		files := r.write(t, made)
		*into = made
		t.Cleanup(func() {
			if !t.Failed() {
				return
			}
			for _, c := range machine.Commands(n) {
				text, _ := os.ReadFile(made.Log(c.Name))
				fmt.Printf("--- %s of %s\n%s\n", c.Name, n.Name, text)
			}
		})
		require.NoError(t, made.On(ctx))
		rules, ok := files["/etc/nftables.conf"]
		require.True(t, ok)
		_, err = made.Run(ctx, string(rules.Content), "nft", "-f", "-")
		require.NoError(t, err)
		for _, c := range machine.Commands(n) {
			if n.Role == keys.Server || c.Name != "nomad" {
				r.start(t, made, c)
			}
		}
	}
	r.env = environment.New(environment.Environment{
		Name: "room", Servers: []string{server}, NomadAddr: "https://" + server + ":4646", ConsulAddr: "https://" + server + ":8501",
	}, r.keys)
	r.consul, err = r.env.Consul()
	require.NoError(t, err)
	r.nomad, err = r.env.Nomad()
	require.NoError(t, err)
	began := time.Now()
	say := func(line string) { fmt.Printf("%5.1fs  %s\n", time.Since(began).Seconds(), line) }
	r.cluster = bootstrap.Cluster{Consul: r.consul, Nomad: r.nomad, Keys: r.keys, Progress: say}
	bounded, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	require.NoError(t, bootstrap.Ensure(bounded, r.cluster))
	say("bootstrapped")
	commands := machine.Commands(specs[1])
	r.start(t, r.client, commands[len(commands)-1])
	require.NoError(t, bootstrap.WaitHealthy(bounded, r.cluster, []string{"server-1"}, []string{"client-1"}))
	say("healthy")
	err = bootstrap.Healthy(bounded, r.cluster, []string{"server-1", "server-2"}, []string{"client-1", "client-2"})
	require.ErrorContains(t, err, "Consul does not see server-2, client-2; no vote in Consul: server-2; no vote in Nomad: server-2; not ready in Nomad: client-2")
	return r
}

// write gives a machine its files.
func (r *room) write(t *testing.T, m *box.Machine) map[string]machine.File {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	files, err := machine.Files(root, r.specs[m], r.keys)
	require.NoError(t, err)
	require.NoError(t, machine.Write(m.Path("/"), r.specs[m], files))
	return files
}

func (r *room) start(t *testing.T, m *box.Machine, c machine.Command) {
	t.Helper()
	require.NoError(t, m.Start(t.Context(), c.Name, []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}, c.Args...))
}

// programs is a folder of what machines have in /usr/local/bin.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "programs")
	require.NoError(t, err)
	built, err := release.Build(t.Context(), "artifactd")
	require.NoError(t, err)
	from := map[string]string{"artifactd": built["artifactd"].Path}
	for _, tool := range []string{tools.Consul, tools.Nomad} {
		from[tool], err = tools.Find(t.Context(), tool)
		require.NoError(t, err)
	}
	for name, path := range from {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o755))
	}
	return dir
}

// asConsul is a client of the Consul agent on a machine, reached as programs
// there reach it.
func (r *room) asConsul(t *testing.T, m *box.Machine, token string) *consulapi.Client {
	t.Helper()
	c, err := consulapi.NewClient(&consulapi.Config{
		Address: "127.0.0.1:8501", Scheme: "https", Token: token, HttpClient: &http.Client{Transport: r.transport(t, m)},
	})
	require.NoError(t, err)
	return c
}

// transport calls from a machine without a certificate.
func (r *room) transport(t *testing.T, m *box.Machine) *http.Transport {
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(r.keys.CA))
	transport := &http.Transport{DialContext: m.Dial, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func (r *room) testTLS(t *testing.T) {
	for _, address := range []string{server + ":8501", server + ":8300", server + ":4646", server + ":4647", server + ":4700", client + ":4646"} {
		t.Run(address, func(t *testing.T) {
			from := r.server
			if strings.HasPrefix(address, server) {
				from = r.client
			}
			if strings.HasSuffix(address, ":8501") { // the firewall keeps other machines from it
				from = r.server
			}
			conn, err := from.Dial(t.Context(), "tcp", address)
			require.NoError(t, err)
			conn.Close()
			transport := r.transport(t, from)
			transport.DisableKeepAlives = true
			for _, plain := range []string{"/v1/agent/self", "/v1/status/leader"} {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+plain, nil)
				require.NoError(t, err)
				bounded := &http.Client{Transport: transport, Timeout: 3 * time.Second}
				response, err := bounded.Do(request)
				if err != nil {
					continue
				}
				response.Body.Close()
				require.Equal(t, http.StatusBadRequest, response.StatusCode, "it speaks without TLS")
			}
		})
	}
	t.Run("RPCWantsACertificate", func(t *testing.T) {
		// The first byte says which protocol follows: 3 is TLS with Consul, 4 with
		// Nomad.
		for address, first := range map[string]byte{server + ":8300": 3, server + ":4647": 4} {
			conn, err := r.client.Dial(t.Context(), "tcp", address)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
			_, err = conn.Write([]byte{first})
			require.NoError(t, err)
			config := r.transport(t, r.client).TLSClientConfig
			config.ServerName = keys.ConsulServerName
			speaking := tls.Client(conn, config)
			err = speaking.HandshakeContext(t.Context())
			if err == nil {
				// TLS 1.3 refuses a client only after its handshake.
				_, err = speaking.Read(make([]byte, 1))
			}
			require.ErrorContains(t, err, "certificate required", address)
		}
	})
	t.Run("AClientIsNoServer", func(t *testing.T) {
		own, err := r.keys.Node("client-1")
		require.NoError(t, err)
		pair, err := tls.X509KeyPair(own.Certificate, own.Key)
		require.NoError(t, err)
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		require.NoError(t, err)
		require.Error(t, leaf.VerifyHostname(keys.ConsulServerName))
		require.Error(t, leaf.VerifyHostname(keys.NomadServerName))
	})
	t.Run("AgentsAPIStaysOnTheMachine", func(t *testing.T) {
		_, err := r.server.Dial(bound(t, 2*time.Second), "tcp", client+":8501")
		require.Error(t, err)
		_, err = r.server.Dial(bound(t, 2*time.Second), "tcp", client+":4700")
		require.Error(t, err)
		// The agent listens on loopback only: not the firewall alone keeps it.
		_, err = r.client.Dial(bound(t, 2*time.Second), "tcp", client+":8501")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}

func bound(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Both agents say themselves that they encrypt gossip, with the environment's
// keys and no other.
func (r *room) testGossip(t *testing.T) {
	rings, err := r.consul.Operator().KeyringList(nil)
	require.NoError(t, err)
	require.NotEmpty(t, rings)
	for _, ring := range rings {
		require.Equal(t, map[string]int{r.keys.Secrets.ConsulGossip: ring.NumNodes}, ring.Keys)
	}
	nomadKeys, err := r.nomad.Agent().ListKeys()
	require.NoError(t, err)
	require.Equal(t, map[string]int{r.keys.Secrets.NomadGossip: 1}, nomadKeys.Keys)
}

func (r *room) testDefaultDeny(t *testing.T) {
	for _, token := range []string{"", keys.UUID()} {
		for name, ask := range map[string]func(*consulapi.Client) error{
			"nodes": func(c *consulapi.Client) error { return nothing(c.Catalog().Nodes(nil)) },
			"register": func(c *consulapi.Client) error {
				return c.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "x"})
			},
			"leaf":   func(c *consulapi.Client) error { _, _, err := c.Agent().ConnectCALeaf("account", nil); return err },
			"kv":     func(c *consulapi.Client) error { _, err := c.KV().Put(&consulapi.KVPair{Key: "x"}, nil); return err },
			"tokens": func(c *consulapi.Client) error { _, _, err := c.ACL().TokenList(nil); return err },
		} {
			require.Error(t, ask(r.asConsul(t, r.client, token)), "Consul: %s with the token %q", name, token)
		}
		nomad := r.asNomad(t, token)
		_, _, err := nomad.Jobs().List(nil)
		require.ErrorContains(t, err, "403", "Nomad: jobs with the token %q", token)
		_, _, err = nomad.Jobs().Register(sleeper("http://127.0.0.1:4700/x", strings.Repeat("0", 64)), nil)
		require.ErrorContains(t, err, "403", "Nomad: a job with the token %q", token)
		_, err = nomad.Agent().Members()
		require.ErrorContains(t, err, "403")
	}
}

// nothing turns an empty answer, which is how Consul filters, into an error.
func nothing[T any](found []T, _ *consulapi.QueryMeta, err error) error {
	if err == nil && len(found) == 0 {
		return errors.New("nothing can be seen")
	}
	return err
}

func (r *room) asNomad(t *testing.T, token string) *nomadapi.Client {
	t.Helper()
	transport := r.transport(t, r.server)
	transport.TLSClientConfig.ServerName = keys.NomadServerName
	c, err := nomadapi.NewClient(&nomadapi.Config{
		Address: "https://" + server + ":4646", SecretID: token, HttpClient: &http.Client{Transport: transport},
	})
	require.NoError(t, err)
	return c
}

// A Consul agent's token is for its own machine.
func (r *room) testAgentToken(t *testing.T) {
	c := r.asConsul(t, r.client, r.keys.Secrets.Nodes["client-1"])
	registration := func(node string) *consulapi.CatalogRegistration {
		return &consulapi.CatalogRegistration{Node: node, Address: client, NodeMeta: map[string]string{"seen": "1"}}
	}
	_, err := c.Catalog().Register(registration("server-1"), nil)
	require.ErrorContains(t, err, "Permission denied", "it wrote another machine")
	require.Error(t, c.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "account"}), "it registered a service")
	_, _, err = c.Agent().ConnectCALeaf("account", nil)
	require.Error(t, err, "it got a service's identity")
	_, _, err = c.ACL().TokenList(nil)
	require.Error(t, err)
	_, err = c.KV().Put(&consulapi.KVPair{Key: "x", Value: []byte("1")}, nil)
	require.Error(t, err)
	// And for that it is good: the machine is in the catalogue with what only its
	// agent can say.
	node, _, err := r.consul.Catalog().Node("client-1", nil)
	require.NoError(t, err)
	require.NotEmpty(t, node.Node.Meta["consul-version"])
}

func (r *room) testNomadTokens(t *testing.T) {
	// They do their work: servers and client are registered by themselves.
	for service, registrations := range map[string]int{"nomad": 3, "nomad-client": 1} { // HTTP, RPC and gossip of a server
		require.Eventually(t, func() bool {
			healthy, _, err := r.consul.Health().Service(service, "", true, nil)
			return err == nil && len(healthy) == registrations
		}, time.Minute, 200*time.Millisecond, "%s is not healthy in Consul", service)
	}

	for name, m := range map[string]struct {
		token    string
		machine  *box.Machine
		services bool
	}{
		"Server": {r.keys.Secrets.ConsulNomadServer, r.server, false},
		"Client": {r.keys.Secrets.ConsulNomadClient, r.client, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.asConsul(t, m.machine, m.token)
			err := c.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: "probe", Name: "probe"})
			if m.services {
				require.NoError(t, err)
				require.NoError(t, c.Agent().ServiceDeregister("probe"))
			} else {
				require.ErrorContains(t, err, "403")
			}
			_, _, err = c.ACL().TokenList(nil)
			require.ErrorContains(t, err, "403", "it sees tokens")
			_, _, err = c.ACL().TokenCreate(&consulapi.ACLToken{}, nil)
			require.ErrorContains(t, err, "403", "it makes tokens")
			_, err = c.KV().Put(&consulapi.KVPair{Key: "x", Value: []byte("1")}, nil)
			require.ErrorContains(t, err, "403", "it writes keys")
			_, _, err = c.ConfigEntries().Set(&consulapi.ServiceIntentionsConfigEntry{
				Kind: consulapi.ServiceIntentions, Name: "account", Sources: []*consulapi.SourceIntention{{Name: "x", Action: consulapi.IntentionActionAllow}},
			}, nil)
			require.ErrorContains(t, err, "403", "it writes intentions")
			_, err = c.Catalog().Register(&consulapi.CatalogRegistration{Node: "elsewhere", Address: "10.90.0.99"}, nil)
			require.Error(t, err, "it registers machines")
			_, err = c.Operator().KeyringList(nil)
			require.Error(t, err, "it reads the gossip's keys")
		})
	}
}

// artifactd on both machines: the operator brings a program, a task gets it.
func (r *room) testArtifacts(t *testing.T) {
	uploader, err := r.env.Artifacts()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "hello")
	require.NoError(t, os.WriteFile(path, []byte("hello"), 0o600))
	const sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	url, err := uploader.Upload(t.Context(), path, sum)
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:4700/"+sum+"/hello", url)
	out, err := r.client.Run(t.Context(), "", "curl", "--silent", "--fail", url)
	require.NoError(t, err)
	require.Equal(t, "hello", out)

	// A machine's certificate reads and does not write.
	_, err = r.client.Run(t.Context(), "", "curl", "--silent", "--fail", "--cacert", machine.CAFile, "--cert", machine.CertFile, "--key", machine.KeyFile,
		"--upload-file", "/etc/hostname", "https://"+server+":4700/"+sum+"/other")
	require.ErrorContains(t, err, "22")
	_, err = r.client.Run(t.Context(), "", "curl", "--silent", "--fail", "--cacert", machine.CAFile, "https://"+server+":4700/"+sum+"/hello")
	require.Error(t, err, "it serves callers without a certificate")
}

// sleeper is a job with a program that the cluster serves itself.
func sleeper(url, sum string) *nomadapi.Job {
	name := "sleeper"
	task := nomadapi.NewTask("wait", "exec").SetConfig("command", "local/waits")
	task.User = "nobody"
	task.Artifacts = []*nomadapi.TaskArtifact{{
		GetterSource: &url, GetterOptions: map[string]string{"checksum": "sha256:" + sum},
	}}
	task.Resources = &nomadapi.Resources{MemoryMB: new(32)}
	group := nomadapi.NewTaskGroup("group", 1).AddTask(task)
	group.Networks = []*nomadapi.NetworkResource{{
		DynamicPorts: []nomadapi.Port{{Label: "mesh", HostNetwork: "private"}, {Label: "admin", HostNetwork: "loopback"}},
	}}
	group.Services = []*nomadapi.Service{{
		Name: name, PortLabel: "mesh", TaskName: "wait", Provider: "consul", Connect: &nomadapi.ConsulConnect{Native: true},
	}}
	job := nomadapi.NewServiceJob(name, name, "global", 50).AddDatacenter("dc1").AddTaskGroup(group)
	job.NodePool = new("services")
	job.Constraints = []*nomadapi.Constraint{nomadapi.NewConstraint("${meta."+machine.Services+"}", "=", "true")}
	return job
}

// A job's service has its own identity and no other, its ports are where they
// should be, and it is placed by the machine's metadata.
func (r *room) testWorkloadIdentity(t *testing.T) {
	uploader, err := r.env.Artifacts()
	require.NoError(t, err)
	program := os.Getenv(waitsVariable)
	text, err := os.ReadFile(program)
	require.NoError(t, err)
	sum := fmt.Sprintf("%x", sha256.Sum256(text))
	url, err := uploader.Upload(t.Context(), program, sum)
	require.NoError(t, err)
	_, _, err = r.nomad.Jobs().Register(sleeper(url, sum), nil)
	require.NoError(t, err)
	var alloc *nomadapi.Allocation
	require.Eventually(t, func() bool {
		allocs, _, err := r.nomad.Jobs().Allocations("sleeper", false, nil)
		if err != nil || len(allocs) == 0 || allocs[0].ClientStatus != nomadapi.AllocClientStatusRunning {
			return false
		}
		alloc, _, err = r.nomad.Allocations().Info(allocs[0].ID, nil)
		services, _, failed := r.consul.Catalog().Service("sleeper", "", nil)
		return err == nil && failed == nil && len(services) == 1
	}, 60*time.Second, 200*time.Millisecond, "the job does not run")
	t.Cleanup(func() {
		_, _, err := r.nomad.Jobs().Deregister("sleeper", true, nil)
		require.NoError(t, err)
	})
	require.Equal(t, "client-1", alloc.NodeName)
	require.Len(t, alloc.AllocatedResources.Shared.Ports, 2)
	for _, port := range alloc.AllocatedResources.Shared.Ports {
		require.Equal(t, map[string]string{"mesh": client, "admin": "127.0.0.1"}[port.Label], port.HostIP, port.Label)
		require.GreaterOrEqual(t, port.Value, 20000)
		require.LessOrEqual(t, port.Value, 31999)
	}

	// The operator does not reach the machine: servers pass on what is for it.
	files, _, err := r.nomad.AllocFS().List(alloc, "/wait", nil)
	require.NoError(t, err)
	require.NotEmpty(t, files)

	// A task of the exec driver has its token in its environment.
	secret := r.taskToken(t, alloc)
	require.NotContains(t, []string{"", r.keys.Secrets.ConsulManagement, r.keys.Secrets.ConsulNomadClient, r.keys.Secrets.Nodes["client-1"]}, secret)
	own := r.asConsul(t, r.client, secret)
	leaf, _, err := own.Agent().ConnectCALeaf("sleeper", nil)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(leaf.ServiceURI, "/svc/sleeper"), leaf.ServiceURI)
	_, _, err = own.Agent().ConnectCALeaf("account", nil)
	require.Error(t, err, "it got another service's identity")
	require.Error(t, own.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "account"}), "it speaks for another service")
	_, err = own.KV().Put(&consulapi.KVPair{Key: "x", Value: []byte("1")}, nil)
	require.Error(t, err)
	_, _, err = own.ACL().TokenList(nil)
	require.Error(t, err)
	self, _, err := own.ACL().TokenReadSelf(nil)
	require.NoError(t, err)
	require.Equal(t, "nomad-workloads", self.AuthMethod)
}

// taskToken reads what the machine's own root can read of the task.
func (r *room) taskToken(t *testing.T, alloc *nomadapi.Allocation) string {
	t.Helper()
	out, err := r.client.Run(t.Context(), "", "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' '\n' < $p/environ 2>/dev/null | grep -q "^NOMAD_ALLOC_ID=`+alloc.ID+`$" &&
		tr '\0' '\n' < $p/environ | sed -n 's/^CONSUL_HTTP_TOKEN=//p' && break; done; true`)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// On a machine that keeps data a task finds what Postgres needs: Debian's makes a
// database where it is installed, and a shell runs in any case.
func (r *room) testDataChroot(t *testing.T) {
	task := nomadapi.NewTask("probe", "exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", "exit 0"})
	if bin, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); err == nil && len(bin) > 0 {
		task.SetConfig("command", bin[len(bin)-1]).SetConfig("args", []string{"--pgdata=/local/data", "--no-sync", "--no-locale", "--encoding=UTF8"})
	}
	task.User = "nobody"
	task.Resources = &nomadapi.Resources{MemoryMB: new(256)}
	group := nomadapi.NewTaskGroup("group", 1).AddTask(task)
	group.RestartPolicy = &nomadapi.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	group.ReschedulePolicy = &nomadapi.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	job := nomadapi.NewBatchJob("probe", "probe", "global", 50).AddDatacenter("dc1").AddTaskGroup(group)
	job.NodePool = new("services")
	job.Constraints = []*nomadapi.Constraint{nomadapi.NewConstraint("${meta."+machine.Data+"}", "=", "true")}
	_, _, err := r.nomad.Jobs().Register(job, nil)
	require.NoError(t, err)
	var alloc *nomadapi.AllocationListStub
	require.Eventually(t, func() bool {
		allocs, _, err := r.nomad.Jobs().Allocations("probe", false, nil)
		if err != nil || len(allocs) == 0 {
			return false
		}
		alloc = allocs[0]
		return alloc.ClientStatus == nomadapi.AllocClientStatusComplete || alloc.ClientStatus == nomadapi.AllocClientStatusFailed
	}, 90*time.Second, 200*time.Millisecond, "the task does not end")
	if alloc.ClientStatus != nomadapi.AllocClientStatusComplete {
		out, _ := r.client.Run(t.Context(), "", "sh", "-c", "tail -n 30 /var/lib/nomad/alloc/"+alloc.ID+"/alloc/logs/*")
		require.Fail(t, "the task failed", "%s %v", out, alloc.TaskStates["probe"].Events[len(alloc.TaskStates["probe"].Events)-1].DisplayMessage)
	}
	_, _, err = r.nomad.Jobs().Deregister("probe", true, nil)
	require.NoError(t, err)
}

// Bootstrapping again writes nothing.
func (r *room) testEnsureAgain(t *testing.T) {
	index := func() (sum uint64) {
		tokens, _, err := r.consul.ACL().TokenList(nil)
		require.NoError(t, err)
		for _, token := range tokens {
			if token.AuthMethod == "" {
				sum += token.ModifyIndex
			}
		}
		policies, _, err := r.consul.ACL().PolicyList(nil)
		require.NoError(t, err)
		for _, p := range policies {
			sum += p.ModifyIndex
		}
		methods, _, err := r.consul.ACL().AuthMethodList(nil)
		require.NoError(t, err)
		for _, m := range methods {
			sum += m.ModifyIndex
		}
		return sum
	}
	before := index()
	require.NoError(t, bootstrap.Ensure(bound(t, 20*time.Second), r.cluster))
	require.Equal(t, before, index())
}

// All keys are replaced while the cluster runs: first the cluster knows the new ones
// beside the old, then the machines get them, then the old ones are good for
// nothing.
func (r *room) testRotate(t *testing.T) {
	old := r.keys.Secrets
	oldClient := r.asConsul(t, r.client, old.ConsulNomadClient)
	served := r.serial(t, server+":8501", r.server)
	var err error
	r.keys, err = keys.Rotate(r.keys.Dir, time.Now(), keys.Certificates, keys.Gossip, keys.Tokens)
	require.NoError(t, err)
	_, err = keys.Rotate(r.keys.Dir, time.Now(), keys.Gossip)
	require.ErrorContains(t, err, "marquee keys apply")

	r.env = environment.New(*r.env, r.keys)
	r.consul, err = r.env.Consul()
	require.NoError(t, err)
	r.nomad, err = r.env.Nomad()
	require.NoError(t, err)
	r.cluster.Consul, r.cluster.Nomad, r.cluster.Keys = r.consul, r.nomad, r.keys
	require.ErrorContains(t, bootstrap.Withdraw(t.Context(), r.cluster), "marquee keys apply", "nothing would be good any more")
	require.NoError(t, bootstrap.Ensure(bound(t, 60*time.Second), r.cluster))
	t.Run("Gossip", r.testGossip)
	require.NotEqual(t, old.ConsulGossip, r.keys.Secrets.ConsulGossip)
	require.NotEqual(t, old.NomadManagement, r.keys.Secrets.NomadManagement)
	_, _, err = oldClient.ACL().TokenReadSelf(nil)
	require.NoError(t, err, "the old token stays good until it is withdrawn")

	for _, m := range []*box.Machine{r.server, r.client} {
		r.write(t, m)
		for _, c := range machine.Commands(r.specs[m]) {
			require.NoError(t, m.Stop(t.Context(), c.Name, syscall.SIGTERM))
			r.start(t, m, c)
			if c.Name == "consul" {
				r.waitForConsul(t, m)
			}
		}
		require.NoError(t, bootstrap.WaitHealthy(bound(t, 60*time.Second), r.cluster, []string{"server-1"}, []string{"client-1"}))
	}
	require.NotEqual(t, served, r.serial(t, server+":8501", r.server), "the old certificate is served")
	require.NoError(t, bootstrap.Withdraw(bound(t, 20*time.Second), r.cluster))
	require.Nil(t, r.keys.Secrets.Before)
	for name, secret := range map[string]string{"management": old.ConsulManagement, "server": old.ConsulNomadServer, "client": old.ConsulNomadClient, "agent": old.Nodes["client-1"]} {
		_, _, err := r.asConsul(t, r.server, secret).ACL().TokenReadSelf(nil)
		require.ErrorContains(t, err, "403", name)
	}
	_, _, err = r.asNomad(t, old.NomadManagement).ACLTokens().Self(nil)
	require.ErrorContains(t, err, "403")
	require.NoError(t, bootstrap.WaitHealthy(bound(t, 60*time.Second), r.cluster, []string{"server-1"}, []string{"client-1"}))
	t.Run("NomadTokens", r.testNomadTokens)
	t.Run("WorkloadIdentity", r.testWorkloadIdentity)
}

// waitForConsul waits until a machine's Consul has joined. A Nomad client that
// starts before looks for it again only 15 s later.
func (r *room) waitForConsul(t *testing.T, m *box.Machine) {
	t.Helper()
	agent := r.asConsul(t, m, "")
	require.Eventually(t, func() bool {
		leader, err := agent.Status().Leader()
		return err == nil && leader != ""
	}, 30*time.Second, 100*time.Millisecond, "Consul has no leader")
}

// serial is that of the certificate that an address shows.
func (r *room) serial(t *testing.T, address string, from *box.Machine) string {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	config := r.transport(t, from).TLSClientConfig
	config.ServerName = keys.ConsulServerName
	speaking := tls.Client(conn, config)
	require.NoError(t, speaking.HandshakeContext(t.Context()))
	return speaking.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

package machine_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/machine"
	"github.com/marquee-ads/marquee/platform/tools"
)

func server() machine.Node {
	return machine.Node{
		Name: "server-1", Role: keys.Server, Address: "10.77.0.11", Servers: []string{"10.77.0.11", "10.77.0.12", "10.77.0.13"},
		Networks: []string{"10.77.0.0/24"}, Operators: []string{"10.77.0.1/32"}, Tuned: true,
	}
}

func client() machine.Node {
	return machine.Node{
		Name: "client-1", Role: keys.Client, Address: "10.77.0.101", Servers: server().Servers,
		Pool: "edge", Meta: map[string]string{machine.Edge: "true", machine.Data: "true"}, Public: "10.77.0.101",
		DataJobs: []string{"account-db", "order-db"},
		Networks: []string{"10.77.0.0/24"}, Operators: []string{"10.77.0.1/32"}, CNIPath: "/usr/lib/cni",
		Chroot: map[string]string{"/opt/postgres": "/opt/postgres"},
	}
}

func madeKeys(t *testing.T) *keys.Keys {
	t.Helper()
	k, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	return k
}

func root(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	return root
}

// written is the machine's root folder.
func written(t *testing.T, n machine.Node, k *keys.Keys) string {
	t.Helper()
	files, err := machine.Files(root(t), n, k)
	require.NoError(t, err)
	rootfs := t.TempDir()
	require.NoError(t, machine.Write(rootfs, n, files))
	return rootfs
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := tools.Ensure(t.Context(), name, func(line string) { t.Log(line) })
	require.NoError(t, err)
	return path
}

// The agents themselves say whether they understand what they are given.
func TestAgentsTakeTheFiles(t *testing.T) {
	k := madeKeys(t)
	relaxed := client()
	relaxed.Tuned, relaxed.Interface, relaxed.DataJobs = false, "lo", nil
	tuned := client()
	tuned.Tuned = true
	for name, n := range map[string]machine.Node{"Server": server(), "Client": relaxed, "TunedClient": tuned} {
		t.Run(name, func(t *testing.T) {
			rootfs := written(t, n, k)
			out, err := exec.CommandContext(t.Context(), tool(t, tools.Consul), "validate", filepath.Join(rootfs, "etc/consul.d")).CombinedOutput()
			require.NoError(t, err, "%s", out)
			out, err = exec.CommandContext(t.Context(), tool(t, tools.Nomad), "config", "validate", filepath.Join(rootfs, "etc/nomad.d")).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}

func TestFirewall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("nft checks rules as root only")
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skipf("the firewall is checked by nft: %v: apt-get install nftables", err)
	}
	k := madeKeys(t)
	for name, n := range map[string]machine.Node{"Server": server(), "Client": client()} {
		t.Run(name, func(t *testing.T) {
			rootfs := written(t, n, k)
			rules, err := os.ReadFile(filepath.Join(rootfs, "etc/nftables.conf"))
			require.NoError(t, err)
			// The machine's own path, in this test's folder.
			text := strings.ReplaceAll(string(rules), `"/etc/marquee/`, `"`+rootfs+`/etc/marquee/`)
			check := exec.CommandContext(t.Context(), nft, "--check", "--file", "-")
			check.Stdin = strings.NewReader(text)
			out, err := check.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
	t.Run("ClosedToTheOperatorOnClients", func(t *testing.T) {
		files, err := machine.Files(root(t), client(), k)
		require.NoError(t, err)
		require.Equal(t, `add element inet marquee cluster { 10.77.0.0/24 }
add element inet marquee operators { 10.77.0.1/32 }
add element inet marquee public_tcp { 1883, 8080, 8081 }
`, string(files["/etc/marquee/firewall.nft"].Content))
		files, err = machine.Files(root(t), server(), k)
		require.NoError(t, err)
		require.Equal(t, `add element inet marquee cluster { 10.77.0.0/24 }
add element inet marquee operator_tcp { 4646, 4700, 8501 }
add element inet marquee operators { 10.77.0.1/32 }
`, string(files["/etc/marquee/firewall.nft"].Content))
	})
}

// What is secret is readable by the programs that need it, and a client knows
// none of the secrets of servers.
func TestSecrets(t *testing.T) {
	k := madeKeys(t)
	files, err := machine.Files(root(t), client(), k)
	require.NoError(t, err)
	var all strings.Builder
	for path, f := range files {
		all.Write(f.Content)
		if strings.HasSuffix(path, "node.json") || strings.HasSuffix(path, "-key.pem") {
			require.Equal(t, fs.FileMode(0o640), f.Mode, path)
		}
	}
	for name, secret := range map[string]string{
		"consul_management": k.Secrets.ConsulManagement, "nomad_management": k.Secrets.NomadManagement,
		"nomad_gossip": k.Secrets.NomadGossip, "consul_nomad_server": k.Secrets.ConsulNomadServer, "server-1": k.Secrets.Nodes["server-1"],
	} {
		require.NotContains(t, all.String(), secret, name)
	}
	require.Contains(t, all.String(), k.Secrets.ConsulNomadClient)

	rootfs := written(t, client(), k)
	info, err := os.Stat(filepath.Join(rootfs, "etc/marquee/tls/node-key.pem"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode().Perm())
	for _, job := range client().DataJobs {
		require.DirExists(t, filepath.Join(rootfs, "var/lib/marquee/volumes", job))
	}
}

func TestNodeJSON(t *testing.T) {
	k := madeKeys(t)
	read := func(n machine.Node, path string) map[string]any {
		files, err := machine.Files(root(t), n, k)
		require.NoError(t, err)
		var value map[string]any
		require.NoError(t, json.Unmarshal(files[path].Content, &value))
		return value
	}
	addresses := []any{"10.77.0.11", "10.77.0.12", "10.77.0.13"}
	require.Equal(t, map[string]any{
		"node_name": "server-1", "bind_addr": "10.77.0.11", "retry_join": addresses, "encrypt": k.Secrets.ConsulGossip, "bootstrap_expect": 3.0,
		"acl": map[string]any{"tokens": map[string]any{"agent": k.Secrets.Nodes["server-1"], "initial_management": k.Secrets.ConsulManagement}},
	}, read(server(), "/etc/consul.d/node.json"))
	nomad := read(client(), "/etc/nomad.d/node.json")
	require.Equal(t, map[string]any{"token": k.Secrets.ConsulNomadClient}, nomad["consul"])
	require.Equal(t, map[string]any{
		"servers": []any{"10.77.0.11:4647", "10.77.0.12:4647", "10.77.0.13:4647"}, "node_pool": "edge",
		"meta":              map[string]any{"marquee_edge": "true", "marquee_data": "true"},
		"network_interface": `{{ GetAllInterfaces | include "address" "^10.77.0.101(/|$)" | attr "name" }}`,
		"host_network":      map[string]any{"private": map[string]any{"cidr": "10.77.0.101/32"}, "public": map[string]any{"cidr": "10.77.0.101/32"}},
		"host_volume": map[string]any{
			"account-db-data": map[string]any{"path": "/var/lib/marquee/volumes/account-db"},
			"order-db-data":   map[string]any{"path": "/var/lib/marquee/volumes/order-db"},
		},
		"chroot_env": map[string]any{"/opt/postgres": "/opt/postgres"}, "cni_path": "/usr/lib/cni",
	}, nomad["client"])
	require.Equal(t, map[string]any{"role": "client", "servers": []any{"10.77.0.11:4700", "10.77.0.12:4700", "10.77.0.13:4700"}},
		read(client(), "/etc/marquee/artifactd.json"))
	require.Equal(t, map[string]any{"role": "server"}, read(server(), "/etc/marquee/artifactd.json"))
}

func TestBadNode(t *testing.T) {
	k := madeKeys(t)
	for name, test := range map[string]struct {
		change func(*machine.Node)
		node   machine.Node
		says   string
	}{
		"NoName":           {func(n *machine.Node) { n.Name = "" }, server(), "needs a name"},
		"Mask":             {func(n *machine.Node) { n.Address = "10.77.0.11/24" }, server(), `"10.77.0.11/24"`},
		"Role":             {func(n *machine.Node) { n.Role = "edge" }, server(), `"edge": want server or client`},
		"EvenServers":      {func(n *machine.Node) { n.Servers = n.Servers[:2] }, server(), "an odd number"},
		"NotItsOwn":        {func(n *machine.Node) { n.Address = "10.77.0.99" }, server(), "is not among those of the servers"},
		"ServerAddress":    {func(n *machine.Node) { n.Servers = []string{"server-1"} }, client(), `"server-1"`},
		"PoolOfAServer":    {func(n *machine.Node) { n.Pool = "edge" }, server(), "for clients"},
		"Public":           {func(n *machine.Node) { n.Public = "everywhere" }, client(), `"everywhere"`},
		"Network":          {func(n *machine.Node) { n.Networks = []string{"10.77.0.0"} }, client(), `"10.77.0.0"`},
		"Backwards":        {func(n *machine.Node) { n.Networks = []string{"10.77.0.9-10.77.0.2"} }, client(), `"10.77.0.9-10.77.0.2"`},
		"Operator":         {func(n *machine.Node) { n.Operators = []string{"me"} }, client(), `"me"`},
		"DataJob":          {func(n *machine.Node) { n.DataJobs = []string{"../account-db"} }, client(), "is no name of a job"},
		"NoKeys":           {func(n *machine.Node) { n.Name = "client-9" }, client(), "marquee keys new"},
		"KeysOfAnotherOne": {func(n *machine.Node) { n.Name = "server-1" }, client(), "is a server's, and the machine is a client"},
	} {
		t.Run(name, func(t *testing.T) {
			test.change(&test.node)
			_, err := machine.Files(root(t), test.node, k)
			require.ErrorContains(t, err, test.says)
		})
	}
}

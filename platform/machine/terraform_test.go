package machine_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/machine"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Terraform makes the same machine: what is tested here and in namespaces holds
// for virtual machines and the cloud's.
func TestTerraformMakesTheSame(t *testing.T) {
	terraform, err := tools.EnsureTerraform(t.Context(), "", func(line string) { t.Log(line) })
	require.NoError(t, err)
	k := madeKeys(t)
	one := client()
	one.Chroot = nil // of namespaces alone
	plain := client()
	plain.Meta, plain.Public, plain.Pool, plain.Interface, plain.Tuned = nil, "", "", "eth0", true
	plain.Chroot = nil
	for name, n := range map[string]machine.Node{"Server": server(), "Client": one, "PlainClient": plain} {
		t.Run(name, func(t *testing.T) {
			n.Networks = []string{"10.77.0.2-10.77.0.254"}
			want, err := machine.Files(root(t), n, k)
			require.NoError(t, err)
			have := terraformFiles(t, terraform, n, k)
			for path, file := range want {
				other, ok := have[path]
				require.True(t, ok, "Terraform does not write %s", path)
				require.Equal(t, fmt.Sprintf("%04o", file.Mode), other.Mode, path)
				switch {
				case strings.HasSuffix(path, ".json"):
					require.JSONEq(t, string(file.Content), other.Content, path)
				case path == "/etc/marquee/firewall.nft":
					// Namespaces have neither clocks to set nor a cloud's metadata to hide.
					require.True(t, strings.HasPrefix(other.Content, string(file.Content)), "%s: %s", path, other.Content)
				default:
					require.Equal(t, strings.TrimRight(string(file.Content), "\n"), strings.TrimRight(other.Content, "\n"), path)
				}
			}
			for path := range have {
				if strings.HasPrefix(path, "/etc/consul.d/") || strings.HasPrefix(path, "/etc/nomad.d/") || strings.HasPrefix(path, "/etc/marquee/") {
					require.Contains(t, want, path, "Terraform alone writes it")
				}
			}
		})
	}
}

// Who runs Terraform by hand gets volumes for every job that keeps data.
func TestTerraformKnowsWhichJobsKeepData(t *testing.T) {
	services, err := stack.ReadServices(root(t))
	require.NoError(t, err)
	jobs := stack.DataJobs(services)
	require.NotEmpty(t, jobs)
	for _, environment := range []string{"local", "hcloud"} {
		file := filepath.Join(root(t), "terraform", "environments", environment, "variables.tf")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		_, variable, found := strings.Cut(string(text), "variable \"data_jobs\" {\n")
		require.True(t, found, file)
		variable, _, _ = strings.Cut(variable, "\n}\n")
		for _, job := range jobs {
			require.Contains(t, variable, fmt.Sprintf("%q", job), "%s: the default of data_jobs lacks a job of nomad-jobs/services.hcl", file)
		}
	}
}

type terraformFile struct{ Mode, Content string }

// terraformFiles applies the module alone, which makes nothing, and reads what it
// would write.
func terraformFiles(t *testing.T, terraform tools.Terraform, n machine.Node, k *keys.Keys) map[string]terraformFile {
	t.Helper()
	own, err := k.Node(n.Name)
	require.NoError(t, err)
	secrets := map[string]string{
		"ca": string(k.CA), "certificate": string(own.Certificate), "key": string(own.Key),
		"consul_gossip": k.Secrets.ConsulGossip, "nomad_gossip": k.Secrets.NomadGossip,
		"consul_agent": own.ConsulToken, "consul_nomad": k.Secrets.ConsulNomadClient,
	}
	if n.Role == keys.Server {
		secrets["consul_nomad"], secrets["consul_management"] = k.Secrets.ConsulNomadServer, k.Secrets.ConsulManagement
	}
	placements := []string{}
	for name, value := range n.Meta {
		if value == "true" {
			placements = append(placements, strings.TrimPrefix(name, "marquee_"))
		}
	}
	node := map[string]any{
		"name": n.Name, "role": n.Role, "address": n.Address, "placements": placements, "interface": n.Interface,
	}
	if n.Pool != "" {
		node["node_pool"] = n.Pool
	}
	ssh, err := os.ReadFile(k.SSHKeyFile() + ".pub")
	require.NoError(t, err)
	text, err := json.Marshal(map[string]any{
		"module": map[string]any{"node": map[string]any{
			"source": filepath.Join(root(t), "terraform", "modules", "node"),
			"node":   node, "servers": n.Servers, "secrets": secrets, "tuned": n.Tuned, "ssh_key": string(ssh),
			"cluster_addresses": n.Networks, "operator_networks": n.Operators, "data_jobs": append([]string{}, n.DataJobs...),
		}},
		"output": map[string]any{"files": map[string]any{"value": "${module.node.files}", "sensitive": true}},
	})
	require.NoError(t, err)
	dir := t.TempDir()
	// The key's PEM and the like hold no template markers.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.tf.json"), text, 0o600))
	var out []byte
	for _, args := range [][]string{{"init", "-input=false"}, {"apply", "-input=false", "-auto-approve"}, {"output", "-json", "files"}} {
		cmd := exec.CommandContext(t.Context(), terraform.Program, args...)
		cmd.Dir, cmd.Env = dir, terraform.Environ()
		var problem strings.Builder
		cmd.Stderr = &problem
		out, err = cmd.Output()
		require.NoError(t, err, "%s: %s", args[0], problem.String())
	}
	var files map[string]terraformFile
	require.NoError(t, json.Unmarshal(out, &files))
	return files
}

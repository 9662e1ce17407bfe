package stack_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

func TestMachines(t *testing.T) {
	n, err := nomad.NewClient(&nomad.Config{Address: "http://127.0.0.1:1"})
	require.NoError(t, err)
	c, err := consul.NewClient(&consul.Config{Address: "127.0.0.1:1"})
	require.NoError(t, err)
	type upload struct{ path, sum string }
	var uploaded []upload
	var needed []string
	full := errors.New("the disk is full")
	target := stack.OnMachines(stack.Machines{
		Name: "staging", Dir: t.TempDir(), Nomad: n, Consul: c, PostgresBinDir: "/opt/postgres/bin",
		Upload: func(_ context.Context, path, sum string) (string, error) {
			if path == "/releases/2/full" {
				return "", full
			}
			uploaded = append(uploaded, upload{path, sum})
			return "http://127.0.0.1:4700/" + sum + "/accountd", nil
		},
		Prune: func(_ context.Context, urls []string) error {
			needed = urls
			return full
		},
	})
	say := func(string) {}

	placed, err := target.Place(t.Context(), map[string]release.Binary{
		"account_binary": {Name: "accountd", Path: "/releases/1/accountd", SHA256: "ab12"},
	}, say)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"account_artifact": "http://127.0.0.1:4700/ab12/accountd"}, placed)
	require.Equal(t, []upload{{"/releases/1/accountd", "ab12"}}, uploaded)

	_, err = target.Place(t.Context(), map[string]release.Binary{"full_binary": {Name: "full", Path: "/releases/2/full"}}, say)
	require.ErrorIs(t, err, full)
	require.ErrorContains(t, err, "handing full to the machines")

	facts, err := target.Facts(t.Context(), say)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"environment": "staging", "postgres_bin_dir": "/opt/postgres/bin"}, facts)

	var said []string
	require.NoError(t, target.Prune(t.Context(), []string{"http://127.0.0.1:4700/ab12/accountd"}, func(line string) { said = append(said, line) }),
		"a deployment does not fail because of what is left")
	require.Equal(t, []string{"http://127.0.0.1:4700/ab12/accountd"}, needed)
	require.Equal(t, []string{"programs that no job needs any more are left: the disk is full"}, said)

	var access *jobs.AccessError
	require.ErrorAs(t, target.Up(t.Context(), say), &access)
	require.Equal(t, jobs.Unreachable, access.Problem)
}

// A value for what no job file declares is a mistake, and changes nothing.
func TestCheckVariables(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	open := func(values map[string]string, files ...string) *stack.Stack {
		s, err := stack.Open(stack.Config{
			Root: root, Target: stack.OnMachines(stack.Machines{Name: "staging", Dir: t.TempDir()}),
			Variables: values, VariableFiles: append([]string{stack.ProductionVariables(root)}, files...),
		})
		require.NoError(t, err)
		return s
	}
	s := open(map[string]string{"account_count": "3", "postgres_cpu": "300"})
	require.NoError(t, s.CheckVariables())
	err = open(map[string]string{"account_cout": "3"}).CheckVariables()
	require.ErrorContains(t, err, `there is no variable "account_cout" in nomad-jobs/account.nomad.hcl, `)
	require.ErrorContains(t, err, "want one of account_artifact, ")

	own := filepath.Join(t.TempDir(), "jobs.hcl")
	require.NoError(t, os.WriteFile(own, []byte("gatewey_min = 3\n"), 0o600))
	require.ErrorContains(t, open(nil, own).CheckVariables(), `there is no variable "gatewey_min"`)

	_, err = s.Deploy(t.Context(), "account", map[string]string{"gateway_count": "3"})
	require.ErrorContains(t, err, `there is no variable "gateway_count" in nomad-jobs/account.nomad.hcl: want one of`)
}

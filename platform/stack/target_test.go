package stack_test

import (
	"context"
	"errors"
	"testing"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
)

func TestMachines(t *testing.T) {
	n, err := nomad.NewClient(&nomad.Config{Address: "http://127.0.0.1:1"})
	require.NoError(t, err)
	c, err := consul.NewClient(&consul.Config{Address: "127.0.0.1:1"})
	require.NoError(t, err)
	type upload struct{ path, sum string }
	var uploaded []upload
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

	var access *jobs.AccessError
	require.ErrorAs(t, target.Up(t.Context(), say), &access)
	require.Equal(t, jobs.Unreachable, access.Problem)
}

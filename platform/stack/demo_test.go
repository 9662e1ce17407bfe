package stack_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// The demo's players are a job of this machine's cluster, when they are wanted, and
// never one of machines.
func TestDemoPlayers(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	programs, err := release.Packages(root)
	require.NoError(t, err)
	players := func(cfg stack.Config) []stack.Service {
		cfg.Root = root
		s, err := stack.Open(cfg)
		require.NoError(t, err)
		return slices.DeleteFunc(s.Services(), func(s stack.Service) bool { return s.Name != stack.Players })
	}
	here := cluster.Config{Dir: filepath.Join(t.TempDir(), "c")}
	require.Empty(t, players(stack.Config{Cluster: here}))
	require.Empty(t, players(stack.Config{Target: stack.OnMachines(stack.Machines{Name: "far"}), Demo: true}))
	found := players(stack.Config{Cluster: here, Demo: true})
	require.Len(t, found, 1)
	require.FileExists(t, filepath.Join(root, found[0].File))
	for variable, program := range found[0].Binaries {
		require.NotEmpty(t, programs[program], "%s is %s", variable, program)
	}
	require.Equal(t, "services/device/cmd/player", filepath.ToSlash(programs["player"]))
}

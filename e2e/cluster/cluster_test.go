package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/cluster/box"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	// buildBound is for the agents and our programs, built from cold.
	buildBound = 15 * time.Minute
	// runBound is for all scenarios; they take about half of it when the
	// processors are theirs.
	runBound = 15 * time.Minute
)

func TestMain(m *testing.M) {
	box.Main()
	os.Exit(m.Run())
}

// The platform on machines serves its callers while machines, agents and disks
// fail, and while they are looked after.
func TestCluster(t *testing.T) {
	if box.Inside() {
		scenarios(t)
		return
	}
	scenario.NeedRoot(t, map[string]string{"ip": "apt-get install iproute2", "nft": "apt-get install nftables"})
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	prepare(t, ctx)
	limited, cancel := context.WithTimeout(ctx, runBound)
	defer cancel()
	run := "^" + t.Name() + "$"
	if _, scenario, some := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); some {
		run += "/" + scenario
	}
	err := box.Run(limited, &prefixed{"  | "}, "-test.run="+run, "-test.v=true", "-test.count=1", "-test.timeout="+runBound.String())
	if errors.Is(err, box.ErrForbidden) {
		t.Skipf("the cluster needs namespaces of its own, which root may not make here: run it outside the container, or in one that is privileged")
	}
	require.NoError(t, err, "see the output above")
}

// prefixed marks the box's output, so that whoever reads ours does not take its
// results for ours.
type prefixed struct{ mark string }

func (p *prefixed) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		fmt.Print(p.mark, strings.TrimSuffix(line, "\n"), "\n")
	}
	return len(text), nil
}

// prepare builds outside the box all that is needed in it, where there is no
// network.
func prepare(t *testing.T, ctx context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, buildBound)
	defer cancel()
	for _, tool := range []string{tools.Consul, tools.Nomad, tools.Postgres} {
		_, err := tools.Ensure(ctx, tool, func(line string) { fmt.Println("  " + line) })
		require.NoError(t, err)
	}
	_, err := release.Build(ctx, programs(t)...)
	require.NoError(t, err)
}

// programs are those that run on the machines, beside the agents.
func programs(t *testing.T) []string {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	names := []string{"artifactd", "player"}
	for _, service := range allServices(t, root) {
		for _, program := range service.Binaries {
			names = append(names, program)
		}
	}
	return names
}

// scenarios run in the box, one after the other, on the same cluster.
func scenarios(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), runBound-30*time.Second)
	defer cancel()
	c := bringUp(t, ctx)
	c.connectDisplays(t, ctx)
	if os.Getenv(marketVariable) != "" {
		c.openMarket(t, ctx)
	}
	t.Cleanup(func() { fmt.Print("\n", &c.figures, "\n") })
	var names []string
	ran := false
	for _, s := range []struct {
		name string
		run  func(*testing.T, context.Context, *cluster)
	}{
		{"OpenPorts", testOpenPorts},
		{"KillLeaders", testKillLeaders},
		{"UpgradeAgents", testUpgradeAgents},
		{"Drain", testDrain},
		{"Placement", testPlacement},
		{"RollNATS", testRollNATS},
		{"FillDisk", testFillDisk},
		{"Partition", testPartition},
		{"KillMachine", testKillMachine},
	} {
		names = append(names, s.name)
		if !t.Run(s.name, func(t *testing.T) {
			ran = true
			c.settle(t, ctx)
			s.run(t, ctx, c)
			c.displays.Settled(ctx, t)
		}) {
			return
		}
	}
	require.True(t, ran, "no scenario is called so; there are %s", strings.Join(names, ", "))
	c.displays.Finish(ctx, t)
	if c.market != nil {
		c.closeMarket(t, ctx)
	}
}

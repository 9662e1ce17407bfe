package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/demo"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// What `marquee up` makes to be looked at: the displays of two owners, which players
// that run as a job play, and what two advertisers have booked on them. A second time
// changes nothing.
func TestDemo(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	t.Cleanup(func() { removeDemo(t) })
	began := time.Now()
	made, deployed := upDemo(t, ctx)
	t.Logf("the demo was there after %.1f s", time.Since(began).Seconds())
	require.True(t, made.Changed)
	require.False(t, deployed.Unchanged)
	require.Len(t, made.Owners, 2)

	doors := openDoors(t, ctx)
	owners := make([]*owner, len(made.Owners))
	for i, o := range made.Owners {
		token, err := scenario.Returning(doors, o.Name, o.Password, o.OrganisationID).Token(ctx)
		require.NoError(t, err)
		owners[i] = &owner{doors: doors, token: token, organisation: o.OrganisationID}
	}
	// each calls what is asked of all displays until it finds nothing wrong.
	each := func(what string, limit time.Duration, wrong func(o *owner, device string) error) {
		t.Helper()
		took := scenario.Eventually(ctx, t, limit, what, func() error {
			displays := 0
			for i, o := range made.Owners {
				for _, d := range o.Displays {
					displays++
					if err := wrong(owners[i], d.DeviceID); err != nil {
						return fmt.Errorf("%s (%s): %w", d.DeviceID, d.Name, err)
					}
				}
			}
			if displays != 20 {
				return fmt.Errorf("there are %d displays", displays)
			}
			return nil
		})
		t.Logf("%s after %.1f s", what, took.Seconds())
	}
	online := func(o *owner, device string) error {
		if online, _ := o.presence(t, ctx, device); !online {
			return errNotYet
		}
		return nil
	}
	each("all displays are online", 30*time.Second, online)
	// Where it is night or Sunday there are displays that are off.
	var said bytes.Buffer
	off := func(device string) bool {
		said.Reset()
		err := the.Jobs().Logs(ctx, stack.Players, jobs.LogOptions{Lines: 5000}, &said)
		return err == nil && bytes.Contains(said.Bytes(), []byte(device+" is off"))
	}
	settled, playing := make(map[string]bool), 0
	each("all displays have plays that count, or are off", 30*time.Second, func(o *owner, device string) error {
		if settled[device] {
			return nil
		}
		_, counted := o.plays(t, ctx, device)
		if counted == 0 && !off(device) {
			return errNotYet
		}
		settled[device] = true
		if counted > 0 {
			playing++
		}
		return nil
	})
	require.GreaterOrEqual(t, playing, 6, "those that are always on play")
	t.Logf("%d of 20 displays play, the others are off", playing)
	took := scenario.Eventually(ctx, t, 90*time.Second, "what is booked on displays that are always on is delivered", deliveries(t, ctx, doors, made.Advertisers))
	t.Logf("what is booked is delivered after %.1f s", took.Seconds())
	// They are fetched by all, also by those that are off, from gateways.
	const pictures, texts = 6, 2 // a third text is for workdays alone
	scenario.Eventually(ctx, t, 10*time.Second, "all pictures and texts are fetched", func() error {
		if len(fetched(t)) < pictures+texts {
			return errNotYet
		}
		return nil
	})
	media := fetched(t)
	before := processes(t, "player")
	require.Len(t, before, 1)
	for _, pid := range before {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	scenario.Eventually(ctx, t, 20*time.Second, "another player plays on", func() error {
		if now := processes(t, "player"); len(now) != 1 || maps.Equal(now, before) {
			return errNotYet
		}
		return nil
	})
	each("all displays are online again", 30*time.Second, online)
	now := fetched(t)
	for name, at := range media {
		require.Equal(t, at, now[name], "%s was fetched again", name)
	}
	before = processes(t, "player")
	for _, pid := range before {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		require.NoError(t, err)
		require.NotContains(t, string(line), "mqd_", "secrets are on the command line")
	}

	began = time.Now()
	again, deployed := upDemo(t, ctx)
	t.Logf("a second time took %.1f s", time.Since(began).Seconds())
	require.False(t, again.Changed)
	require.True(t, deployed.Unchanged)
	require.Equal(t, made.Owners, again.Owners)
	require.Equal(t, made.Advertisers, again.Advertisers)
	require.Equal(t, before, processes(t, "player"), "the players were started anew")
	said.Reset()
	require.NoError(t, the.Jobs().Logs(ctx, stack.Players, jobs.LogOptions{Lines: 5000}, &said))
	require.Contains(t, said.String(), made.Owners[0].Displays[0].DeviceID+" shows ")
	scenario.Eventually(ctx, t, 10*time.Second, "the players' summary", func() error {
		said.Reset()
		if err := the.Jobs().Logs(ctx, stack.Players, jobs.LogOptions{Lines: 200}, &said); err != nil {
			return err
		}
		summary := regexp.MustCompile(`20 displays: 20 connected, 0 refused, 0 replaced, (\d+) showing, (\d+) off;`).FindSubmatch(said.Bytes())
		if summary == nil {
			return errNotYet
		}
		var showing, off int
		if _, err := fmt.Sscan(string(summary[1])+" "+string(summary[2]), &showing, &off); err != nil {
			return err
		}
		if showing == 0 || showing+off != 20 {
			return fmt.Errorf("%d show something and %d are off", showing, off)
		}
		return nil
	})
	require.NotRegexp(t, `[1-9]\d* rejected|[1-9]\d* LOST`, said.String())
}

// deliveries returns what says what is not played of what the advertisers have booked.
// What is on in the mornings alone may not be on now.
func deliveries(t *testing.T, ctx context.Context, doors scenario.Doors, advertisers []demo.Advertiser) func() error {
	t.Helper()
	buyers, orders := map[string]*scenario.Owner{}, map[string]string{} // by order
	for _, a := range advertisers {
		buyer := scenario.Returning(doors, a.Name, a.Password, a.OrganisationID)
		for _, o := range a.Orders {
			if o.Title != "Coffee before work" {
				buyers[o.OrderID], orders[o.OrderID] = buyer, o.Title
			}
		}
	}
	require.Len(t, orders, 4)
	return func() error {
		for id, title := range orders {
			var found orderv1.GetDeliveryResponse
			if err := buyers[id].Ask(ctx, scenario.REST, &orderv1.GetDeliveryRequest{OrderId: id}, &found); err != nil {
				return err
			}
			if found.GetTotal().GetDeliveredPlays() == 0 {
				return fmt.Errorf("nothing is played of %s: %v", title, found.GetTotal())
			}
		}
		return nil
	}
}

// fetched are the pictures and texts that the players have, and when they got each.
func fetched(t *testing.T) map[string]time.Time {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(the.Cluster().Volumes(), "players", "media"))
	require.NoError(t, err)
	found := make(map[string]time.Time)
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		found[entry.Name()] = info.ModTime()
	}
	return found
}

// upDemo does what `marquee up` does for the demo.
func upDemo(t *testing.T, ctx context.Context) (made demo.Demo, deployed jobs.Deployed) {
	t.Helper()
	s, err := stack.Open(stack.Config{
		Root: the.root, Cluster: cluster.Config{Dir: the.Cluster().Dir(), Name: "e2e"},
		VariableFiles: []string{filepath.Join(the.root, "nomad-jobs", "vars", "local.hcl")},
		EdgesFiles:    []string{filepath.Join(the.root, "nomad-jobs", "edges.hcl"), filepath.Join(the.root, "e2e", "jobs", "edges.hcl")},
		Services:      []stack.Service{}, Demo: true,
		Progress: func(line string) { t.Log(line) },
	})
	require.NoError(t, err)
	require.NoError(t, s.Prepare(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		all, err := s.DeployAll(ctx)
		if err == nil {
			deployed = all[0]
		}
		return err
	})
	group.Go(func() error {
		door, err := s.WaitServed(ctx, "/v1/signing-keys")
		if err != nil {
			return err
		}
		made, err = s.MakeDemo(ctx, door)
		return err
	})
	require.NoError(t, group.Wait())
	return made, deployed
}

// removeDemo takes the players away, so that later scenarios have no others than
// their own.
func removeDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if t.Failed() {
		var said bytes.Buffer
		if err := the.Jobs().Logs(ctx, stack.Players, jobs.LogOptions{Lines: 60}, &said); err == nil {
			t.Logf("the players said:\n%s", said.String())
		}
	}
	require.NoError(t, the.Jobs().Stop(ctx, stack.Players, true))
	_, err := the.Cluster().Nomad().Variables().Delete("nomad/jobs/"+stack.Players, nil)
	require.NoError(t, err)
}

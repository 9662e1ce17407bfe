package order_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
)

// TestEverythingAtOnce does all that changes orders, creatives and money at once, by
// organisations that buy from each other: nothing waits for what waits for it, and in
// the end all adds up.
func TestEverythingAtOnce(t *testing.T) {
	m := newMarket(t)
	organisations := []string{buyer, another, owner}
	const workers, rounds = 12, 12
	creatives := map[string][]string{}
	for i, o := range organisations {
		m.fund(t, o, eur(order.MaxAmount))
		for n := range 2 {
			m.put(t, fmt.Sprintf("dev_%d%d", i, n), "organisation_id = '"+o+"'")
			creatives[o] = append(creatives[o], m.creative(t, o, fmt.Sprintf("crv_%026d", 10*i+n)))
		}
	}
	var all sync.WaitGroup
	// Somebody else was first, or there is nothing left: all else, and above all a
	// deadlock, is wrong.
	possible := func(what string, err error) {
		if f, known := fault.From(err); err != nil && (!known || f.Code != fault.FailedPrecondition) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range workers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(n)))
			pick := func(list []string) string { return list[random.IntN(len(list))] }
			for range rounds {
				who := pick(organisations)
				var lines []order.LineRequest
				for i := range 1 + random.IntN(4) {
					l := slotOn(fmt.Sprintf("dev_%d%d", random.IntN(3), random.IntN(2)), 10+i, 10+i)
					l.CreativeID = pick(append(creatives[who], ""))
					lines = append(lines, l)
				}
				o, err := m.hold(t, who, lines...)
				if possible("holding", err); err != nil {
					continue
				}
				if random.IntN(4) > 0 {
					_, err = m.book(t, o)
					possible("booking", err)
				}
				for range 3 {
					switch random.IntN(4) {
					case 0:
						_, err = m.SetLineCreative(t.Context(), who, o.ID, nil, pick(append(creatives[who], "")))
						possible("setting a creative", err)
					case 1:
						id := pick(creatives[who])
						_, err = m.store.UpdateCreative(t.Context(), order.Edit{
							OrganisationID: who, ID: id, Title: "x", Time: time.Unix(0, m.clock.Load()),
							Contents: order.Contents{SHA256: fmt.Sprintf("%064x", random.Uint64()), MediaType: "image/png"},
						})
						possible("editing", err)
					default:
						asked, _, err := m.ListApprovals(t.Context(), who, order.Pending, paging.Page{})
						possible("reading approvals", err)
						for _, a := range asked {
							reason := pick([]string{"", "", "no"})
							_, err = m.DecideApproval(t.Context(), who, a.CreativeID, a.Version, reason == "", reason)
							possible("deciding", err)
						}
					}
				}
				if random.IntN(2) == 0 {
					_, err = m.cancel(t, o)
					possible("cancelling", err)
				}
			}
		})
	}
	all.Wait()
	for _, state := range []order.State{order.Held, order.Booked, order.Cancelled} {
		require.NotZero(t, get[int](t, m, "SELECT count(*) FROM orders WHERE state = $1", string(state)), "no order is %s", state)
	}
	require.NotZero(t, get[int](t, m, "SELECT count(*) FROM lines WHERE shown_version > 0"))
}

// creative makes an image of an organisation.
func (m *market) creative(t *testing.T, organisationID, id string) string {
	t.Helper()
	m.exec(t, `INSERT INTO creatives (creative_id, organisation_id, title, version, create_time) VALUES ($1, $2, 'x', 1, now())`, id, organisationID)
	m.exec(t, `INSERT INTO creative_versions (creative_id, version, sha256, media_type, width_px, height_px, duration_ms, thumbnail, create_time)
		VALUES ($1, 1, repeat('a', 64), 'image/png', 10, 10, 0, '', now())`, id)
	return id
}

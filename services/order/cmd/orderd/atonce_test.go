package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/natstest"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// Bookings, edits, decisions and cancellations at once, on two instances: each is done
// or refused for a reason, none waits for another in a circle, and in the end every
// display was told what it is to show.
func TestTellingAtOnce(t *testing.T) {
	const workers, rounds = 6, 25
	nats := natstest.Start(t)
	w := newWorld(t)
	w.nats = nats.Address
	folder := "--media-url=file://" + t.TempDir()
	instances := []*instance{w.start(t, folder), w.start(t, folder)}
	displays := instances[0].displays(t, 4)
	text := func(words string) *orderv1.CreativeContent {
		return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: &orderv1.TextContent{Text: words}}}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	asBuyer := w.account.ContextWithRoles(ctx, t, "test", "acc_ada", auth.Roles{buyer: auth.Advertiser})
	asOwner := w.account.ContextWithRoles(ctx, t, "test", "acc_bob", auth.Roles{owner: auth.Operator})
	var creatives []string
	for n := range 2 {
		made, err := instances[0].CreateCreative(asBuyer, &orderv1.CreateCreativeRequest{OrganisationId: buyer, RequestId: fmt.Sprintf("request-c%d", n), Title: "Sale", Content: text("Sale")})
		require.NoError(t, err)
		creatives = append(creatives, made.GetCreative().GetCreativeId())
	}
	_, err := instances[0].TopUpWallet(asBuyer, &orderv1.TopUpWalletRequest{OrganisationId: buyer, RequestId: "request-t", Amount: &orderv1.Money{AmountMinor: 1_000_000_000, Currency: "EUR"}, PaymentMethod: "card"})
	require.NoError(t, err)

	// fits says that a call was done, or that what somebody else did is in its way.
	fits := func(err error, reasons ...codes.Code) {
		if err == nil {
			return
		}
		assert.Contains(t, append(reasons, codes.FailedPrecondition), status.Code(err), "%v", err)
	}
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(worker)))
			i := instances[worker%2]
			for round := range rounds {
				name := fmt.Sprintf("%d-%d", worker, round)
				creative := creatives[random.IntN(2)]
				some := []string{displays[random.IntN(2)], displays[2+random.IntN(2)]}
				if random.IntN(2) == 0 {
					some[0], some[1] = some[1], some[0]
				}
				held, err := i.HoldOrder(asBuyer, &orderv1.HoldOrderRequest{OrganisationId: buyer, RequestId: "hold-order-" + name, Lines: []*orderv1.LineRequest{
					{DeviceId: some[0], Flight: days(2), Slots: 1, CreativeId: creative}, {DeviceId: some[1], Flight: days(2), Slots: 1},
				}})
				fits(err)
				if err == nil {
					o := held.GetOrder()
					_, err = i.BookOrder(asBuyer, &orderv1.BookOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "book-order-" + name})
					fits(err)
					_, err = i.SetLineCreative(asBuyer, &orderv1.SetLineCreativeRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), CreativeId: creatives[random.IntN(2)]})
					fits(err)
					if random.IntN(4) > 0 {
						_, err = i.CancelOrder(asBuyer, &orderv1.CancelOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "cancel-order-" + name})
						fits(err)
					}
				}
				switch edited, err := i.UpdateCreative(asBuyer, &orderv1.UpdateCreativeRequest{OrganisationId: buyer, CreativeId: creative, Title: "Sale", Content: text("Sale " + name)}); {
				case err != nil:
					fits(err)
				default:
					decide := &orderv1.DecideApprovalRequest{
						OrganisationId: owner, CreativeId: creative, Version: edited.GetCreative().GetVersions()[0].GetVersion(), Approve: random.IntN(3) > 0,
					}
					if !decide.GetApprove() {
						decide.Reason = "no"
					}
					_, err := i.DecideApproval(asOwner, decide)
					fits(err, codes.NotFound) // while nothing of it is booked, nobody asks
				}
			}
		})
	}
	all.Wait()
	printed, err := w.command(t, "--rebuild-playlists")
	require.NoError(t, err)
	require.Contains(t, printed, "of 0 lines displays were not told")
	printed, err = w.command(t, "--check-playlists")
	require.NoError(t, err, printed)
	printed, err = w.command(t, "--check-ledger")
	require.NoError(t, err, printed)
	revisions := map[string]int64{}
	for _, l := range w.told(t, nats, 0) {
		require.Equal(t, revisions[l.GetLineId()]+1, l.GetRevision(), "events of %s are missing, or not in order", l.GetLineId())
		revisions[l.GetLineId()] = l.GetRevision()
	}
	rows, err := w.db(t).Query(t.Context(), "SELECT line_id, revision, showing_number FROM lines WHERE booked")
	require.NoError(t, err)
	var (
		id              string
		revision, shown int64
		showings        int64
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &revision, &shown}, func() error {
		require.Equal(t, revision, revisions[id], "%s", id)
		showings += shown
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, revisions)
	require.Positive(t, showings)
}

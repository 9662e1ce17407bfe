package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// approvedWithin and approvedEach bound how long it takes until displays show what
	// was approved: all, and what each of them adds on two processors.
	approvedWithin = 4 * time.Second
	approvedEach   = 10 * time.Millisecond
)

// One approval puts a text on every display that it is booked on. MARQUEE_E2E_DEVICES
// says how many those are.
func TestApproval(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	f, o := newFleet(t, ctx)
	f.Run(ctx, t)
	const money, linesOfOrder = 1_000_000_000_000, 200
	buyer := scenario.NewAdvertiser(ctx, t, o.doors)
	require.NoError(t, buyer.TopUp(ctx, "the-top-up", money, "EUR"))
	var made orderv1.CreateCreativeResponse
	require.NoError(t, buyer.Ask(ctx, scenario.GRPC, &orderv1.CreateCreativeRequest{RequestId: "the-creative", Title: "Sale", Content: text("Sale")}, &made))
	creative := made.GetCreative().GetCreativeId()

	// Every slot of each loop, so that what is approved is due at once.
	zone, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	today := time.Now().In(zone)
	flight := &orderv1.Flight{StartDate: today.Format(time.DateOnly), EndDate: today.AddDate(0, 0, 1).Format(time.DateOnly)}
	lines := map[string]string{} // by display
	orders := 0
	for some := range slices.Chunk(f.IDs, linesOfOrder) {
		orders++
		hold := &orderv1.HoldOrderRequest{RequestId: fmt.Sprintf("hold-%04d", orders), Title: "Sale"}
		for _, id := range some {
			hold.Lines = append(hold.Lines, &orderv1.LineRequest{DeviceId: id, Flight: flight, Slots: 2, CreativeId: creative})
		}
		var held orderv1.HoldOrderResponse
		scenario.Eventually(ctx, t, 30*time.Second, "the displays are for sale", func() error {
			return buyer.Ask(ctx, scenario.GRPC, hold, &held)
		})
		require.NoError(t, buyer.Ask(ctx, scenario.GRPC, &orderv1.BookOrderRequest{OrderId: held.GetOrder().GetOrderId(), RequestId: fmt.Sprintf("book-%04d", orders)}, nil))
		for _, line := range held.GetOrder().GetLines() {
			lines[line.GetDeviceId()] = line.GetLineId()
		}
	}
	require.Len(t, lines, len(f.IDs))

	asked := time.Now()
	require.NoError(t, o.shared.Ask(ctx, scenario.GRPC, &orderv1.DecideApprovalRequest{CreativeId: creative, Version: 1, Approve: true}, nil))
	answered := time.Now()
	scenario.Eventually(ctx, t, time.Minute, "every display shows it", func() error {
		said := f.Said(t)
		for id, line := range lines {
			if !strings.HasPrefix(said.Shows[id], line+"-") {
				return fmt.Errorf("%s shows %q", id, said.Shows[id])
			}
		}
		return nil
	})
	took := make([]time.Duration, 0, len(lines))
	for id := range lines {
		took = append(took, f.Said(t).Since[id].Sub(answered))
	}
	slices.Sort(took)
	t.Logf("approved for %d displays in %s; it is on the screens p50 %s, p99 %s, at the last %s after that was answered", len(lines),
		answered.Sub(asked).Round(time.Millisecond), took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	require.LessOrEqual(t, took[len(took)*99/100], approvedWithin+time.Duration(len(lines))*approvedEach)
	checkSales(t, ctx)
}

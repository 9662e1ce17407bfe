package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"image"
	"image/png"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/stack"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// slotLength is how long a slot of the journey's displays is; a loop has two.
	slotLength = 4 * time.Second
	// slotPrice is what one play costs there, in cents.
	slotPrice = 250
	// onScreenWithin is how soon what was approved is shown, and what was taken down
	// is not.
	onScreenWithin = 2 * time.Second
	// playTolerance is by how much a play may miss its full length and still count, and
	// go beyond its slot and still be possible, as docs/device-protocol.md has it.
	playTolerance = 500 * time.Millisecond
)

// journey is one advertiser and one owner of displays, who do everything there is to
// do with a booking.
type journey struct {
	seller *scenario.Owner
	buyer  *scenario.Owner
	zone   *time.Location // of all displays

	calls int
}

// asker is who calls.
type asker interface {
	Ask(ctx context.Context, door scenario.Door, in, out proto.Message) error
}

// ask calls a method, through one door and then the other.
func (j *journey) ask(t *testing.T, ctx context.Context, who asker, in, out proto.Message) {
	t.Helper()
	j.calls++
	require.NoError(t, who.Ask(ctx, scenario.Door(j.calls%2), in, out))
}

// day is a date at the displays, so many days from now.
func (j *journey) day(days int) string {
	return time.Now().In(j.zone).AddDate(0, 0, days).Format(time.DateOnly)
}

func (j *journey) flight(first, last int) *orderv1.Flight {
	return &orderv1.Flight{StartDate: j.day(first), EndDate: j.day(last)}
}

// short is the next day at the displays on which the clock skips an hour.
func (j *journey) short() string {
	const shortDay = 23 * time.Hour
	for day := 1; ; day++ {
		y, m, d := time.Now().In(j.zone).AddDate(0, 0, day).Date()
		midnight := func(d int) time.Time { return time.Date(y, m, d, 0, 0, 0, 0, j.zone) }
		if midnight(d+1).Sub(midnight(d)) == shortDay {
			return midnight(d).Format(time.DateOnly)
		}
	}
}

// settings are those of a display.
func (j *journey) settings(name string, price int, currency string) map[string]any {
	settings := scenario.DisplaySettings(name, slotLength)
	settings["slotPrice"] = map[string]any{"amountMinor": price, "currency": currency}
	settings["timeZone"] = j.zone.String()
	return settings
}

// display enrols one that no player plays.
func (j *journey) display(t *testing.T, ctx context.Context, name string, price int, currency string) string {
	t.Helper()
	id, _, err := j.seller.Enrol(ctx, "display-"+name, j.settings(name, price, currency))
	require.NoError(t, err)
	return id
}

// search returns what is free on displays, which are all there.
func (j *journey) search(ctx context.Context, flight *orderv1.Flight, slots int32, devices ...string) ([]*orderv1.Availability, error) {
	j.calls++
	var found orderv1.SearchAvailabilityResponse
	err := j.buyer.Ask(ctx, scenario.Door(j.calls%2), &orderv1.SearchAvailabilityRequest{
		Flight: flight, Slots: slots, DeviceIds: devices, IncludeFull: true, VenueTypes: []string{"transit"}, MinWidthPx: 1000,
		Orientation: orderv1.Orientation_ORIENTATION_PORTRAIT, Area: &orderv1.Area{South: 48, West: 11, North: 49, East: 12},
	}, &found)
	if err == nil && len(found.GetDisplays()) != len(devices) {
		err = fmt.Errorf("%d of %d displays are found", len(found.GetDisplays()), len(devices))
	}
	return found.GetDisplays(), err
}

// forSale waits until displays can be found.
func (j *journey) forSale(t *testing.T, ctx context.Context, devices ...string) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, 15*time.Second, "the displays are for sale", func() error {
		_, err := j.search(ctx, j.flight(0, 1), 1, devices...)
		return err
	})
}

// wallet is a balance in euros.
func (j *journey) wallet(t *testing.T, ctx context.Context, who asker) int64 {
	t.Helper()
	var found orderv1.GetWalletResponse
	j.ask(t, ctx, who, &orderv1.GetWalletRequest{}, &found)
	for _, balance := range found.GetBalances() {
		if balance.GetCurrency() == "EUR" {
			return balance.GetAmountMinor()
		}
	}
	return 0
}

// entries sum what went into a wallet and out of it, by why.
func (j *journey) entries(t *testing.T, ctx context.Context, who asker) map[orderv1.EntryKind]int64 {
	t.Helper()
	sums := map[orderv1.EntryKind]int64{}
	request := &orderv1.ListWalletEntriesRequest{PageSize: 2}
	for {
		var page orderv1.ListWalletEntriesResponse
		j.ask(t, ctx, who, request, &page)
		for _, e := range page.GetEntries() {
			require.Equal(t, "EUR", e.GetCurrency())
			sums[e.GetKind()] += e.GetAmountMinor()
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return sums
		}
	}
}

// line is an order's only one, as it is now.
func (j *journey) line(t *testing.T, ctx context.Context, order string) *orderv1.Line {
	t.Helper()
	var found orderv1.GetOrderResponse
	j.ask(t, ctx, j.buyer, &orderv1.GetOrderRequest{OrderId: order}, &found)
	require.Len(t, found.GetOrder().GetLines(), 1)
	return found.GetOrder().GetLines()[0]
}

// delivery is that of an order.
func (j *journey) delivery(t *testing.T, ctx context.Context, order string) *orderv1.Delivery {
	t.Helper()
	var found orderv1.GetDeliveryResponse
	j.ask(t, ctx, j.buyer, &orderv1.GetDeliveryRequest{OrderId: order}, &found)
	require.Len(t, found.GetLines(), 1)
	require.Equal(t, found.GetTotal().GetDeliveredPlays(), found.GetLines()[0].GetDelivery().GetDeliveredPlays())
	return found.GetTotal()
}

// pending waits until the seller is asked to approve a version.
func (j *journey) pending(t *testing.T, ctx context.Context, creative string, version int32) {
	t.Helper()
	scenario.Eventually(ctx, t, 5*time.Second, "the owner of the display is asked", func() error {
		var found orderv1.ListApprovalsResponse
		if err := j.seller.Ask(ctx, scenario.GRPC, &orderv1.ListApprovalsRequest{State: orderv1.ApprovalState_APPROVAL_STATE_PENDING}, &found); err != nil {
			return err
		}
		for _, a := range found.GetApprovals() {
			if a.GetCreativeId() == creative && a.GetVersion() == version && len(a.GetCreative().GetVersions()) == 1 {
				return nil
			}
		}
		return fmt.Errorf("only %v are pending", found.GetApprovals())
	})
}

// text is the content of a creative.
func text(words string) *orderv1.CreativeContent {
	return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: &orderv1.TextContent{Text: words, Color: "#FFCC00", Bold: true}}}
}

// videoLength is how long the video of video is.
const videoLength = 2 * time.Second

func video(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile("../services/order/media/testdata/front.mp4")
	require.NoError(t, err)
	return content
}

// picture is a PNG.
func picture(t *testing.T, width, height int) []byte {
	t.Helper()
	var content bytes.Buffer
	require.NoError(t, png.Encode(&content, image.NewGray(image.Rect(0, 0, width, height))))
	return content.Bytes()
}

// upload is the content of a creative, uploaded in two parts through one gateway and
// then the other.
func (j *journey) upload(t *testing.T, ctx context.Context, gateways []stack.Gateway, content []byte) *orderv1.CreativeContent {
	t.Helper()
	token, err := j.buyer.Token(ctx)
	require.NoError(t, err)
	name := scenario.NewMedia(gateways, token).Upload(ctx, t, j.buyer.Organisation, content, 2)
	return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_MediaSha256{MediaSha256: name}}
}

// An advertiser and an owner of displays sign up; a display is enrolled, found, held,
// paid and shows what the advertiser wrote as soon as its owner approves it. It is
// edited, rejected, edited again, replaced by a picture and by a video, and taken down;
// what is left of the booking is given back. What was played, and the money, add up to
// the end.
func TestJourney(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	gateways, _ := bothGateways(t, ctx)
	doors := openDoors(t, ctx)
	zone, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	const money = 100_000_000
	j := &journey{seller: scenario.NewOwner(ctx, t, doors), buyer: scenario.NewAdvertiser(ctx, t, doors), zone: zone}
	require.NoError(t, j.buyer.TopUp(ctx, "the-top-up", money, "EUR"))
	require.EqualValues(t, money, j.wallet(t, ctx, j.buyer))

	device, code, err := j.seller.ClaimCode(ctx, "the-display", j.settings("Gate 7", slotPrice, "EUR"))
	require.NoError(t, err)
	player := scenario.StartPlayer(ctx, t, device, code, gateways)
	t.Logf("the display is for sale %s after its player was started", j.forSale(t, ctx, device).Round(time.Millisecond))

	// Both slots of each loop, today and tomorrow.
	free, err := j.search(ctx, j.flight(0, 1), 2, device)
	require.NoError(t, err)
	offer := free[0]
	require.Equal(t, [2]int32{2, 2}, [2]int32{offer.GetFreeSlots(), offer.GetSlotsPerLoop()})
	require.Equal(t, offer.GetPlays()*slotPrice, offer.GetPrice().GetAmountMinor())
	require.NotZero(t, offer.GetPlays())
	var held orderv1.HoldOrderResponse
	hold := &orderv1.HoldOrderRequest{RequestId: "the-hold", Title: "Spring sale", Lines: []*orderv1.LineRequest{
		{DeviceId: device, Flight: j.flight(0, 1), Slots: 2, MaxPrice: offer.GetPrice()},
	}}
	j.ask(t, ctx, j.buyer, hold, &held)
	order, price := held.GetOrder().GetOrderId(), held.GetOrder().GetPrice().GetAmountMinor()
	require.Equal(t, orderv1.OrderState_ORDER_STATE_HELD, held.GetOrder().GetState())
	require.LessOrEqual(t, price, offer.GetPrice().GetAmountMinor())
	require.Len(t, held.GetOrder().GetLines(), 1)
	line := held.GetOrder().GetLines()[0]
	require.Equal(t, []int32{0, 1}, line.GetSlots())
	require.Equal(t, line.GetPlays()*slotPrice, price)
	j.ask(t, ctx, j.buyer, hold, &held)
	require.Equal(t, order, held.GetOrder().GetOrderId(), "a repeat made another order")
	require.EqualValues(t, money, j.wallet(t, ctx, j.buyer), "a hold costs nothing")

	var written orderv1.CreateCreativeResponse
	j.ask(t, ctx, j.buyer, &orderv1.CreateCreativeRequest{RequestId: "the-creative", Title: "Spring sale", Content: text("Everything must go")}, &written)
	creative := written.GetCreative().GetCreativeId()
	var booked orderv1.BookOrderResponse
	for range 2 { // the second time through the other door
		j.ask(t, ctx, j.buyer, &orderv1.BookOrderRequest{OrderId: order, RequestId: "the-booking"}, &booked)
		require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, booked.GetOrder().GetState())
		require.EqualValues(t, money-price, j.wallet(t, ctx, j.buyer), "it is paid once")
	}
	j.ask(t, ctx, j.buyer, &orderv1.SetLineCreativeRequest{OrderId: order, CreativeId: creative}, nil)
	j.pending(t, ctx, creative, 1)

	mine := func(showing string) bool { return strings.HasPrefix(showing, line.GetLineId()+"-") }
	is := func(showing string) func(string) bool { return func(s string) bool { return s == showing } }
	decide := func(version int32, reason string) (asked, answered time.Time) {
		t.Helper()
		asked = time.Now()
		j.ask(t, ctx, j.seller, &orderv1.DecideApprovalRequest{CreativeId: creative, Version: version, Approve: reason == "", Reason: reason}, nil)
		return asked, time.Now()
	}
	// appears waits until what was approved is on the screen.
	appears := func(asked, answered time.Time, words string) (showing string) {
		t.Helper()
		shown := player.Showing(ctx, t, asked, 20*time.Second, words, func(s scenario.Shown) bool { return mine(s.Creative) && s.Text == words+"\n" })
		t.Logf("%q is on the screen %s after the approval was asked for, %s after it was answered", words,
			shown.Time.Sub(asked).Round(time.Millisecond), shown.Time.Sub(answered).Round(time.Millisecond))
		require.LessOrEqual(t, shown.Time.Sub(answered), onScreenWithin)
		return shown.Creative
	}
	require.Empty(t, player.Plays(mine), "it is shown and nobody approved it")
	asked, answered := decide(1, "")
	first := appears(asked, answered, "Everything must go")
	require.EqualValues(t, 1, j.line(t, ctx, order).GetShownVersion())
	counted := scenario.Eventually(ctx, t, 10*slotLength, "three plays are delivered", func() error {
		if d := j.delivery(t, ctx, order); d.GetDeliveredPlays() < 3 {
			return fmt.Errorf("there are %v", d)
		}
		return nil
	})
	t.Logf("three plays are delivered %s after it was shown", counted.Round(time.Millisecond))

	// What was approved stays until what was written since is.
	edit := func(version int32, content *orderv1.CreativeContent) time.Time {
		t.Helper()
		began := time.Now()
		var edited orderv1.UpdateCreativeResponse
		j.ask(t, ctx, j.buyer, &orderv1.UpdateCreativeRequest{CreativeId: creative, Title: "Spring sale", Content: content, Version: version - 1}, &edited)
		require.Equal(t, version, edited.GetCreative().GetVersions()[0].GetVersion())
		j.pending(t, ctx, creative, version)
		return began
	}
	edited := edit(2, text("The best words ever"))
	player.Showing(ctx, t, edited, 3*slotLength, "the first version still", func(s scenario.Shown) bool { return s.Creative == first })
	require.EqualValues(t, 1, j.line(t, ctx, order).GetShownVersion())
	decide(2, "says what nobody can prove")
	var found orderv1.GetCreativeResponse
	j.ask(t, ctx, j.buyer, &orderv1.GetCreativeRequest{CreativeId: creative}, &found)
	require.Len(t, found.GetCreative().GetVersions(), 2)
	rejected := found.GetCreative().GetVersions()[0]
	require.EqualValues(t, 2, rejected.GetVersion())
	require.Len(t, rejected.GetApprovals(), 1)
	require.Equal(t, "says what nobody can prove", rejected.GetApprovals()[0].GetReason())
	require.Equal(t, orderv1.ApprovalState_APPROVAL_STATE_REJECTED, rejected.GetApprovals()[0].GetState())
	edit(3, text("Half of everything must go"))
	asked, answered = decide(3, "")
	second := appears(asked, answered, "Half of everything must go")
	require.NotEqual(t, first, second)
	require.EqualValues(t, 3, j.line(t, ctx, order).GetShownVersion())
	scenario.Eventually(ctx, t, 5*slotLength, "it was played", func() error {
		if len(player.Plays(is(second))) == 0 {
			return errNotYet
		}
		return nil
	})

	// A picture, and then a video, which is shorter than the slot.
	lengths := map[string]time.Duration{first: slotLength, second: slotLength}
	for _, m := range []struct {
		what, mediaType string
		content         []byte
		width, height   int32
		length          time.Duration
	}{
		{"a picture", "image/png", picture(t, 108, 192), 108, 192, slotLength},
		{"a video", "video/mp4", video(t), 64, 48, videoLength},
	} {
		version := int32(len(lengths) + 2)
		edit(version, j.upload(t, ctx, gateways, m.content))
		asked, answered = decide(version, "")
		shown := player.Showing(ctx, t, asked, 20*time.Second, m.what, func(s scenario.Shown) bool { return mine(s.Creative) && lengths[s.Creative] == 0 })
		t.Logf("%s is on the screen %s after the approval was asked for, %s after it was answered", m.what,
			shown.Time.Sub(asked).Round(time.Millisecond), shown.Time.Sub(answered).Round(time.Millisecond))
		require.LessOrEqual(t, shown.Time.Sub(answered), onScreenWithin)
		lengths[shown.Creative] = m.length
		j.ask(t, ctx, j.buyer, &orderv1.GetCreativeRequest{CreativeId: creative}, &found)
		newest := found.GetCreative().GetVersions()[0]
		require.Equal(t, []any{version, m.mediaType, m.width, m.height}, []any{newest.GetVersion(), newest.GetMediaType(), newest.GetWidthPx(), newest.GetHeightPx()})
		scenario.Eventually(ctx, t, 5*slotLength, m.what+" was played", func() error {
			if len(player.Plays(is(shown.Creative))) == 0 {
				return errNotYet
			}
			return nil
		})
	}

	asked = time.Now()
	j.ask(t, ctx, j.buyer, &orderv1.TakeDownCreativeRequest{CreativeId: creative}, nil)
	answered = time.Now()
	gone := player.Showing(ctx, t, asked, 20*time.Second, scenario.Nothing, func(s scenario.Shown) bool { return s.Creative == scenario.Nothing })
	t.Logf("it is off the screen %s after the takedown was asked for, %s after it was answered",
		gone.Time.Sub(asked).Round(time.Millisecond), gone.Time.Sub(answered).Round(time.Millisecond))
	require.LessOrEqual(t, gone.Time.Sub(answered), onScreenWithin)

	// What the player wrote down is what is delivered.
	full := 0
	for _, play := range player.Plays(mine) {
		if play.Duration >= lengths[play.Creative]-playTolerance && play.Duration <= slotLength+playTolerance {
			full++
		}
	}
	scenario.Eventually(ctx, t, 10*time.Second, "all plays are delivered", func() error {
		if d := j.delivery(t, ctx, order); d.GetDeliveredPlays() != int64(full) {
			return fmt.Errorf("the player wrote %d full ones down, and the order has %v", full, d)
		}
		return nil
	})
	d := j.delivery(t, ctx, order)
	require.Equal(t, line.GetPlays(), d.GetBookedPlays())
	require.Less(t, d.GetScheduledPlays(), d.GetBookedPlays())
	require.InDelta(t, 100*float64(full)/float64(d.GetBookedPlays()), d.GetDeliveredPercent(), 0.001)
	require.Zero(t, d.GetMakeGoodPlays(), "it is not over")
	t.Run("Export", func(t *testing.T) { j.export(t, ctx, order, line.GetLineId(), full, len(player.Plays(mine))) })
	checkPlays(t, ctx)
	checkSales(t, ctx)

	t.Run("Refused", func(t *testing.T) { j.refused(t, ctx, order, device, creative) })
	refund, future := j.cancel(t, ctx, order, device)
	j.addUp(t, ctx, money, price, refund, future)
	shownAfter := player.Plays(mine)
	player.End(t)
	require.Equal(t, shownAfter, player.Plays(mine), "it was played after it was taken down")
	checkSales(t, ctx)
}

// export compares the report of an order with what its player wrote down.
func (j *journey) export(t *testing.T, ctx context.Context, order, line string, full, all int) {
	var report orderv1.ExportDeliveryResponse
	j.ask(t, ctx, j.buyer, &orderv1.ExportDeliveryRequest{OrderId: order}, &report)
	rows, err := csv.NewReader(strings.NewReader(report.GetCsv())).ReadAll()
	require.NoError(t, err)
	require.Equal(t, []string{"line_id", "device_id", "day", "plays", "counted_plays", "duration_seconds"}, rows[0])
	require.Greater(t, len(rows), 1)
	var plays, counted int
	for _, row := range rows[1:] {
		require.Equal(t, line, row[0])
		number := func(cell string) int {
			n, err := strconv.Atoi(cell)
			require.NoError(t, err)
			return n
		}
		plays, counted = plays+number(row[3]), counted+number(row[4])
	}
	require.Equal(t, full, counted, report.GetCsv())
	require.LessOrEqual(t, plays, all, report.GetCsv())
}

// cancel gives back what is left of an order that is on, which refunds half of it,
// and one that begins in more than 72 hours, which refunds all of it.
func (j *journey) cancel(t *testing.T, ctx context.Context, order, device string) (refund, future *orderv1.Order) {
	t.Helper()
	var held orderv1.HoldOrderResponse
	mornings := []*orderv1.Daypart{}
	for weekday := range int32(7) {
		mornings = append(mornings, &orderv1.Daypart{Weekday: weekday + 1, StartMinute: 7 * 60, EndMinute: 11 * 60})
	}
	j.ask(t, ctx, j.buyer, &orderv1.HoldOrderRequest{RequestId: "mornings", Lines: []*orderv1.LineRequest{
		{DeviceId: device, Flight: j.flight(10, 11), Dayparts: mornings, Slots: 1},
	}}, &held)
	const loop = 2 * slotLength
	require.EqualValues(t, 2*4*time.Hour/loop, held.GetOrder().GetLines()[0].GetPlays(), "two mornings of four hours")
	j.ask(t, ctx, j.buyer, &orderv1.BookOrderRequest{OrderId: held.GetOrder().GetOrderId(), RequestId: "book-mornings"}, nil)

	cancel := func(order string) *orderv1.Order {
		t.Helper()
		var answers [2]orderv1.CancelOrderResponse
		for i := range answers {
			j.ask(t, ctx, j.buyer, &orderv1.CancelOrderRequest{OrderId: order, RequestId: "cancel-" + order}, &answers[i])
		}
		require.Equal(t, orderv1.OrderState_ORDER_STATE_CANCELLED, answers[0].GetOrder().GetState())
		require.Equal(t, answers[0].GetOrder().GetRefunded().GetAmountMinor(), answers[1].GetOrder().GetRefunded().GetAmountMinor())
		return answers[0].GetOrder()
	}
	future = cancel(held.GetOrder().GetOrderId())
	require.Equal(t, future.GetPrice().GetAmountMinor(), future.GetRefunded().GetAmountMinor(), "it begins in more than 72 hours")

	before := j.line(t, ctx, order)
	began, ends := before.GetStartTime().AsTime(), before.GetEndTime().AsTime()
	refund = cancel(order)
	left := float64(ends.Sub(refund.GetCancelTime().AsTime())) / float64(ends.Sub(began))
	require.InEpsilon(t, float64(refund.GetPrice().GetAmountMinor())*left/2, float64(refund.GetRefunded().GetAmountMinor()), .01, "half of what is left")
	free, err := j.search(ctx, j.flight(0, 1), 2, device)
	require.NoError(t, err)
	require.EqualValues(t, 2, free[0].GetFreeSlots(), "the slots are free again")
	return refund, future
}

// addUp compares both wallets, and the platform's share, with what was bought.
func (j *journey) addUp(t *testing.T, ctx context.Context, money, price int64, cancelled, future *orderv1.Order) {
	t.Helper()
	refunded := cancelled.GetRefunded().GetAmountMinor()
	require.EqualValues(t, money-price+refunded, j.wallet(t, ctx, j.buyer), "the buyer's wallet")
	require.Equal(t, map[orderv1.EntryKind]int64{
		orderv1.EntryKind_ENTRY_KIND_TOP_UP:  money,
		orderv1.EntryKind_ENTRY_KIND_BOOKING: -price - future.GetPrice().GetAmountMinor(),
		orderv1.EntryKind_ENTRY_KIND_REFUND:  refunded + future.GetRefunded().GetAmountMinor(),
	}, j.entries(t, ctx, j.buyer))

	var bookings orderv1.ListBookingsResponse
	j.ask(t, ctx, j.seller, &orderv1.ListBookingsRequest{}, &bookings)
	require.Len(t, bookings.GetBookings(), 2)
	var earned int64
	for _, b := range bookings.GetBookings() {
		require.Equal(t, j.buyer.Organisation, b.GetBuyerOrganisationId())
		require.Equal(t, orderv1.OrderState_ORDER_STATE_CANCELLED, b.GetState())
		earned += b.GetEarned().GetAmountMinor()
	}
	require.Equal(t, earned, j.wallet(t, ctx, j.seller), "the owner's wallet")
	require.Equal(t, map[orderv1.EntryKind]int64{orderv1.EntryKind_ENTRY_KIND_EARNING: earned}, j.entries(t, ctx, j.seller))
	// A fifth of what was not refunded is the platform's.
	kept := price - refunded
	require.InDelta(t, float64(kept)/5, float64(kept-earned), 2, "of %d kept the owner got %d", kept, earned)
	t.Logf("of %d cents %d were refunded, %d are the owner's and %d the platform's", price, refunded, earned, kept-earned)
}

// refused sends what is wrong through both doors. The display is booked by this
// order.
func (j *journey) refused(t *testing.T, ctx context.Context, order, device, creative string) {
	const rivalHas = 1000
	rival := scenario.NewAdvertiser(ctx, t, j.seller.Doors)
	require.NoError(t, rival.TopUp(ctx, "the-top-up", rivalHas, "EUR"))
	dear := j.display(t, ctx, "dear", 1_000_000, "EUR")
	dollars := j.display(t, ctx, "dollars", slotPrice, "USD")
	unclaimed, _, err := j.seller.ClaimCode(ctx, "display-unclaimed", j.settings("unclaimed", slotPrice, "EUR"))
	require.NoError(t, err)
	j.forSale(t, ctx, dear, dollars)

	hold := func(lines ...*orderv1.LineRequest) *orderv1.HoldOrderRequest {
		return &orderv1.HoldOrderRequest{RequestId: "bad-request", Lines: lines}
	}
	on := func(device string, flight *orderv1.Flight, slots int32, dayparts ...*orderv1.Daypart) *orderv1.LineRequest {
		return &orderv1.LineRequest{DeviceId: device, Flight: flight, Slots: slots, Dayparts: dayparts}
	}
	from := func(minute, until int32) *orderv1.Daypart {
		return &orderv1.Daypart{Weekday: 1, StartMinute: minute, EndMinute: until}
	}
	money := func(minor int64, currency string) *orderv1.Money {
		return &orderv1.Money{AmountMinor: minor, Currency: currency}
	}
	topUp := func(amount *orderv1.Money, method string) *orderv1.TopUpWalletRequest {
		return &orderv1.TopUpWalletRequest{RequestId: "bad-top-up", Amount: amount, PaymentMethod: method}
	}
	limited := func(max *orderv1.Money) *orderv1.LineRequest {
		l := on(dollars, j.flight(5, 5), 1)
		l.MaxPrice = max
		return l
	}
	nobody := "dev_00000000000000000000000000"
	for name, c := range map[string]struct {
		who    asker
		in     proto.Message
		reason string
		field  string // that the details name
	}{
		"InThePast":          {rival, hold(on(dear, j.flight(-1, 3), 1)), "VALIDATION_FAILED", "lines[0].flight"},
		"EndsBeforeItBegins": {rival, hold(on(dear, j.flight(4, 3), 1)), "VALIDATION_FAILED", "lines[0].flight"},
		"TooLong":            {rival, hold(on(dear, j.flight(1, 367), 1)), "VALIDATION_FAILED", "lines[0].flight"},
		"TooFarAhead":        {rival, hold(on(dear, j.flight(740, 741), 1)), "VALIDATION_FAILED", "lines[0].flight"},
		"NoDate":             {rival, hold(on(dear, &orderv1.Flight{StartDate: "2027-02-30", EndDate: "2027-03-01"}, 1)), "VALIDATION_FAILED", "lines[0].flight"},
		"NoSlots":            {rival, hold(on(dear, j.flight(1, 2), 0)), "VALIDATION_FAILED", "lines[0].slots"},
		"MoreSlotsThanALoop": {rival, hold(on(dear, j.flight(1, 2), 3)), "VALIDATION_FAILED", "lines[0].slots"},
		"NoLines":            {rival, hold(), "VALIDATION_FAILED", "lines"},
		"LinesOverlap":       {rival, hold(on(dear, j.flight(1, 3), 1), on(dear, j.flight(3, 4), 1)), "VALIDATION_FAILED", "lines[1]"},
		"DaypartsOverlap":    {rival, hold(on(dear, j.flight(1, 8), 1, from(60, 120), from(119, 180))), "VALIDATION_FAILED", "lines[0].dayparts"},
		"DaypartBackwards":   {rival, hold(on(dear, j.flight(1, 8), 1, from(120, 60))), "VALIDATION_FAILED", "lines[0].dayparts"},
		"NeverOn":            {rival, hold(on(dear, j.flight(1, 1), 1, &orderv1.Daypart{Weekday: j.weekday(3), StartMinute: 0, EndMinute: 60})), "VALIDATION_FAILED", "lines[0]"},
		"AmountTooLarge":     {rival, hold(on(dear, j.flight(1, 360), 2)), "AMOUNT_TOO_LARGE", "lines[0]"},
		"CurrenciesDiffer":   {rival, hold(on(dear, j.flight(1, 2), 1), on(dollars, j.flight(1, 2), 1)), "CURRENCIES_DIFFER", "lines[1]"},
		"DearerThanAllowed":  {rival, hold(limited(money(slotPrice, "USD"))), "PRICE_CHANGED", "lines[0]"},
		"InAnotherCurrency":  {rival, hold(limited(money(1_000_000_000, "EUR"))), "PRICE_CHANGED", "lines[0]"},
		"NoDisplay":          {rival, hold(on(dear, j.flight(1, 2), 1), on(nobody, j.flight(1, 2), 1)), "DISPLAY_NOT_FOUND", "lines[1]"},
		"NoPlayer":           {rival, hold(on(unclaimed, j.flight(1, 2), 1)), "DISPLAY_NOT_FOUND", "lines[0]"},
		"Taken":              {rival, hold(on(dear, j.flight(1, 2), 1), on(device, j.flight(1, 2), 1)), "SLOT_TAKEN", "lines[1]"},
		"SomebodyElsesOrder": {rival, &orderv1.GetOrderRequest{OrderId: order}, "ORDER_NOT_FOUND", ""},
		"BookSomebodyElses":  {rival, &orderv1.BookOrderRequest{OrderId: order, RequestId: "bad-booking"}, "ORDER_NOT_FOUND", ""},
		"CancelSomebodyElses": {
			rival, &orderv1.CancelOrderRequest{OrderId: order, RequestId: "bad-cancel"}, "ORDER_NOT_FOUND", "",
		},
		"CancelAsAnother": {
			rival, &orderv1.CancelOrderRequest{OrganisationId: j.buyer.Organisation, OrderId: order, RequestId: "bad-cancel"}, "NOT_A_MEMBER", "",
		},
		"SomebodyElsesCreative": {rival, &orderv1.UpdateCreativeRequest{CreativeId: creative, Title: "Mine", Content: text("Mine")}, "CREATIVE_NOT_FOUND", ""},
		"ApproveItOneself":      {j.buyer, &orderv1.DecideApprovalRequest{CreativeId: creative, Version: 3, Approve: true}, "APPROVAL_NOT_FOUND", ""},
		"ApproveWhatIsDown":     {j.seller, &orderv1.DecideApprovalRequest{CreativeId: creative, Version: 3, Approve: true}, "CREATIVE_TAKEN_DOWN", ""},
		"BookTwice":             {j.buyer, &orderv1.BookOrderRequest{OrderId: order, RequestId: "another-booking"}, "ORDER_STATE", ""},
		"RequestIDReused":       {j.buyer, &orderv1.HoldOrderRequest{RequestId: "the-hold", Lines: []*orderv1.LineRequest{on(dear, j.flight(1, 2), 1)}}, "REQUEST_ID_REUSED", "request_id"},
		"NoMedia": {
			rival, &orderv1.CreateCreativeRequest{RequestId: "bad-creative", Title: "Nothing", Content: &orderv1.CreativeContent{
				Content: &orderv1.CreativeContent_MediaSha256{MediaSha256: strings.Repeat("0", 64)},
			}}, "MEDIA_NOT_FOUND", "",
		},
		"NoContent":       {rival, &orderv1.CreateCreativeRequest{RequestId: "bad-creative", Title: "Nothing"}, "VALIDATION_FAILED", "content"},
		"TopUpNothing":    {rival, topUp(money(0, "EUR"), "test"), "VALIDATION_FAILED", "amount"},
		"TopUpTooMuch":    {rival, topUp(money(1<<62, "EUR"), "test"), "VALIDATION_FAILED", "amount"},
		"TopUpLess":       {rival, topUp(money(-1, "EUR"), "test"), "VALIDATION_FAILED", "amount"},
		"UnknownCurrency": {rival, topUp(money(1, "ZZZ"), "test"), "VALIDATION_FAILED", "amount"},
		"Declined":        {rival, topUp(money(1, "EUR"), "declined"), "PAYMENT_DECLINED", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, door := range []scenario.Door{scenario.GRPC, scenario.REST} {
				err := c.who.Ask(ctx, door, c.in, nil)
				require.True(t, scenario.Refused(err), "%v", err)
				require.Equal(t, c.reason, scenario.Reason(err), "%v", err)
				if st, ok := status.FromError(err); ok && c.field != "" {
					fields := grpcfault.FromStatus(st).Fields
					require.True(t, len(fields) > 0 && strings.HasPrefix(fields[0].Path, c.field), "the details name %v, not %s", fields, c.field)
				}
			}
		})
	}

	t.Run("UnknownZone", func(t *testing.T) {
		settings := j.settings("Olympus", slotPrice, "EUR")
		settings["timeZone"] = "Mars/Olympus_Mons"
		_, _, err := j.seller.ClaimCode(ctx, "display-olympus", settings)
		require.Equal(t, "VALIDATION_FAILED", scenario.Reason(err), "%v", err)
	})
	t.Run("TooLittleMoney", func(t *testing.T) {
		var held orderv1.HoldOrderResponse
		j.ask(t, ctx, rival, &orderv1.HoldOrderRequest{RequestId: "too-dear", Lines: []*orderv1.LineRequest{on(dear, j.flight(1, 1), 1)}}, &held)
		for _, door := range []scenario.Door{scenario.GRPC, scenario.REST} {
			err := rival.Ask(ctx, door, &orderv1.BookOrderRequest{OrderId: held.GetOrder().GetOrderId(), RequestId: "book-too-dear"}, nil)
			require.Equal(t, "FUNDS_INSUFFICIENT", scenario.Reason(err), "%v", err)
		}
		require.EqualValues(t, rivalHas, j.wallet(t, ctx, rival))
		j.ask(t, ctx, rival, &orderv1.CancelOrderRequest{OrderId: held.GetOrder().GetOrderId(), RequestId: "cancel-too-dear"}, nil)
	})
	t.Run("Expired", func(t *testing.T) {
		var held orderv1.HoldOrderResponse
		j.ask(t, ctx, rival, &orderv1.HoldOrderRequest{RequestId: "too-late", LifetimeSeconds: 1, Lines: []*orderv1.LineRequest{on(dear, j.flight(1, 1), 2)}}, &held)
		expires := held.GetOrder().GetHoldExpireTime().AsTime()
		scenario.Eventually(ctx, t, 5*time.Second, "the hold expires", func() error {
			if time.Now().After(expires) {
				return nil
			}
			return errNotYet
		})
		err := rival.Ask(ctx, scenario.GRPC, &orderv1.BookOrderRequest{OrderId: held.GetOrder().GetOrderId(), RequestId: "book-too-late"}, nil)
		require.Equal(t, "HOLD_EXPIRED", scenario.Reason(err), "%v", err)
		var again orderv1.HoldOrderResponse
		j.ask(t, ctx, j.buyer, &orderv1.HoldOrderRequest{RequestId: "in-nobodys-way", Lines: []*orderv1.LineRequest{on(dear, j.flight(1, 1), 2)}}, &again)
		j.ask(t, ctx, j.buyer, &orderv1.CancelOrderRequest{OrderId: again.GetOrder().GetOrderId(), RequestId: "cancel-in-nobodys-way"}, nil)
	})
	t.Run("PriceChanged", func(t *testing.T) {
		before, err := j.search(ctx, j.flight(5, 5), 1, dollars)
		require.NoError(t, err)
		require.NoError(t, j.seller.Call(ctx, http.MethodPut, j.seller.On("/"+dollars), map[string]any{"settings": j.settings("dollars", slotPrice+1, "USD")}, nil))
		scenario.Eventually(ctx, t, 10*time.Second, "the display costs more", func() error {
			now, err := j.search(ctx, j.flight(5, 5), 1, dollars)
			if err == nil && now[0].GetSlotPrice().GetAmountMinor() != slotPrice+1 {
				err = errNotYet
			}
			return err
		})
		err = rival.Ask(ctx, scenario.REST, hold(limited(before[0].GetPrice())), nil)
		require.Equal(t, "PRICE_CHANGED", scenario.Reason(err), "%v", err)
	})
	t.Run("ClockSkipsAnHour", func(t *testing.T) {
		day := j.short()
		found, err := j.search(ctx, &orderv1.Flight{StartDate: day, EndDate: day}, 1, dear)
		require.NoError(t, err)
		require.EqualValues(t, 23*time.Hour/(2*slotLength), found[0].GetPlays(), day)
	})
}

// weekday is that of a day at the displays, 1 to 7.
func (j *journey) weekday(days int) int32 {
	return int32((time.Now().In(j.zone).AddDate(0, 0, days).Weekday()+6)%7) + 1 //nolint:gosec // 1 to 7
}

// checkSales has orderd prove that the money adds up, that each booking is paid once and
// has its slots alone, and that devices know what is sold, as docs/operations.md has it.
func checkSales(t *testing.T, ctx context.Context) {
	t.Helper()
	for command, well := range map[string]string{"--check-ledger": "fit together", "--check-playlists": "and no others"} {
		said := strings.TrimSpace(operate(t, ctx, "order", "orderd "+command))
		require.True(t, strings.HasSuffix(said, well), "%s", said)
		t.Logf("%s: %s", command, said[strings.LastIndexByte(said, '\n')+1:])
	}
}

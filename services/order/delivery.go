package order

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

// ErrPlaysUnavailable is what callers are told while plays cannot be read.
var ErrPlaysUnavailable = fault.New(fault.Unavailable, "PLAYS_UNAVAILABLE", "plays cannot be read at the moment: the device service does not answer").
	WithRetryAfter(2 * time.Second)

// Plays knows how often lines were played.
type Plays interface {
	// Sum returns the plays of lines, in their order; with byDay for each day, in
	// order. Lines and days without plays are left out. Errors: ErrPlaysUnavailable.
	Sum(ctx context.Context, lines []LinePeriod, byDay bool) ([]LinePlays, error)
}

// LinePeriod is a line in a time.
type LinePeriod struct {
	DeviceID, LineID string
	From, To         time.Time
}

// LinePlays sums the plays of one line.
type LinePlays struct {
	LineID string
	// Day is 2006-01-02 in UTC; empty for all days together.
	Day   string
	Plays int64
	// Counted is how many of them count.
	Counted int64
	// Duration is how long all of them together were.
	Duration time.Duration
}

// DeliveryStore keeps what is delivered and what displays are told of.
type DeliveryStore interface {
	// ListBookings returns the lines that are or were booked on an owner's displays,
	// the newest first: those before this line, all when it is empty.
	ListBookings(ctx context.Context, ownerID string, f BookingFilter, before string, limit int) ([]Booking, error)

	// DueOrders returns booked orders, without their lines, whose last line ended
	// before a time: the next after a position, by end and id.
	DueOrders(ctx context.Context, endedBefore time.Time, after DuePosition, limit int) ([]Order, error)
	// SettleOrder completes a booked order by how many plays of each line count, see
	// Order.Settle, and pays out what was kept for it. It returns false, and does
	// nothing, when the order is not booked any more or somebody else is at it.
	SettleOrder(ctx context.Context, o Order, counted map[string]int64, now time.Time) (bool, error)

	// Sold returns the lines that displays should know of, those that are booked and
	// not over at this time: the next after a position, by devices and lines. Only of
	// these devices; of all without any.
	Sold(ctx context.Context, deviceIDs []string, now time.Time, after LinePosition, limit int) ([]SoldLine, error)
	// TellAgain works out anew what booked lines show, and tells their displays what
	// changed.
	TellAgain(ctx context.Context, lineIDs []string, now time.Time) error
	// KeepSold calls use with all lines of a device that it should know of, and
	// nothing is booked or cancelled on it meanwhile: use has one and a half seconds.
	KeepSold(ctx context.Context, deviceID string, now time.Time, use func(context.Context, []BookedLine) error) error
	// DisplayIDs returns the displays after one, by their ids.
	DisplayIDs(ctx context.Context, after string, limit int) ([]string, error)
	// LedgerSize is how many entries the ledger has, and about how many orders.
	LedgerSize(ctx context.Context) (entries, orders int64, err error)
}

// BookingFilter says which bookings are wanted. Its zero values are no conditions.
type BookingFilter struct {
	DeviceID string
	// From and To are for those that are on from or later, and before to.
	From, To time.Time
}

// Booking is a line that was paid, as the display's owner sees it.
type Booking struct {
	Line
	// State is that of its order.
	State    State
	BuyerID  string
	Currency string
}

// Delivery is what was promised and what was played.
type Delivery struct {
	// BookedPlays are those of the whole flight, or until it was cancelled.
	BookedPlays int64
	// ScheduledPlays is how many of them should have been until now.
	ScheduledPlays int64
	// DeliveredPlays is how many count; it may be more.
	DeliveredPlays int64
	// ForecastPlays is how many there will be if it goes on as until now.
	ForecastPlays int64
	// MakeGoodPlays are owed: what is missing at the end.
	MakeGoodPlays int64
	// MakeGood is what those are worth.
	MakeGood Money
}

// LineDelivery is the delivery of one line.
type LineDelivery struct {
	LineID, DeviceID string
	Delivery
}

// DeliveredPercent is delivered of booked; 0 when nothing is booked.
func (d Delivery) DeliveredPercent() float64 { return percent(d.DeliveredPlays, d.BookedPlays, 0) }

// PacingPercent is delivered of scheduled: below 100 is behind. While nothing is
// scheduled, nothing is.
func (d Delivery) PacingPercent() float64 { return percent(d.DeliveredPlays, d.ScheduledPlays, 100) }

func percent(part, whole int64, none float64) float64 {
	if whole <= 0 {
		return none
	}
	return 100 * float64(part) / float64(whole)
}

// DeliveryOf is the delivery of a line with so many plays that count. Of a cancelled
// order nothing is owed: what is left was given back, and what is past is settled.
func DeliveryOf(o Order, l Line, counted int64, now time.Time) Delivery {
	d := Delivery{
		BookedPlays: l.Plays, DeliveredPlays: counted, MakeGood: Money{Currency: o.Price.Currency},
		ScheduledPlays: min(l.Plays, PlaysOf(l.past(now), l.LoopLength, len(l.Slots))),
	}
	d.ForecastPlays = forecast(d)
	if o.State != Cancelled && !now.Before(l.End()) {
		d.MakeGoodPlays = max(0, l.Plays-counted)
		d.MakeGood.Minor = l.PriceMinor - DeliveredMinor(l.PriceMinor, counted, l.Plays)
	}
	if o.State == Completed {
		// Plays that came later change nothing any more.
		d.MakeGood.Minor = l.RefundedMinor
	}
	return d
}

// forecast goes on at the rate of until now, at most at that which was booked.
func forecast(d Delivery) int64 {
	delivered := min(d.DeliveredPlays, d.BookedPlays)
	left := d.BookedPlays - d.ScheduledPlays
	if d.ScheduledPlays > 0 {
		left = DeliveredMinor(left, d.DeliveredPlays, d.ScheduledPlays)
	}
	return min(d.BookedPlays, delivered+left)
}

// total is the delivery of all lines together.
func total(lines []LineDelivery, currency string) Delivery {
	sum := Delivery{MakeGood: Money{Currency: currency}}
	for _, l := range lines {
		sum.BookedPlays += l.BookedPlays
		sum.ScheduledPlays += l.ScheduledPlays
		sum.DeliveredPlays += l.DeliveredPlays
		sum.ForecastPlays += l.ForecastPlays
		sum.MakeGoodPlays += l.MakeGoodPlays
		sum.MakeGood.Minor += l.MakeGood.Minor
	}
	return sum
}

// periods are an order's lines as plays are asked for. One that was cancelled before
// it began was never on.
func periods(o Order) []LinePeriod {
	var list []LinePeriod
	for _, l := range o.Lines {
		if len(l.Times) > 0 {
			list = append(list, LinePeriod{DeviceID: l.DeviceID, LineID: l.ID, From: l.Start(), To: l.End()})
		}
	}
	return list
}

// sum asks for the plays of an order's lines.
func (s *Service) sum(ctx context.Context, o Order, byDay bool) ([]LinePlays, error) {
	wanted := periods(o)
	if len(wanted) == 0 {
		return nil, nil
	}
	sums, err := s.plays.Sum(ctx, wanted, byDay)
	if err != nil {
		return nil, fmt.Errorf("reading the plays of %s: %w", o.ID, err)
	}
	return sums, nil
}

// counted is how many plays of each line count.
func (s *Service) counted(ctx context.Context, o Order) (map[string]int64, error) {
	sums, err := s.sum(ctx, o, false)
	if err != nil {
		return nil, err
	}
	counted := make(map[string]int64, len(sums))
	for _, sum := range sums {
		counted[sum.LineID] += sum.Counted
	}
	return counted, nil
}

// Delivery returns what was played of an order: in all, and of its lines. Errors:
// ErrNotFound, ErrState when it was never booked, ErrPlaysUnavailable.
func (s *Service) Delivery(ctx context.Context, organisationID, id string) (Delivery, []LineDelivery, error) {
	o, err := s.booked(ctx, organisationID, id)
	if err != nil {
		return Delivery{}, nil, err
	}
	counted, err := s.counted(ctx, o)
	if err != nil {
		return Delivery{}, nil, err
	}
	lines, now := make([]LineDelivery, len(o.Lines)), s.moment()
	for i, l := range o.Lines {
		lines[i] = LineDelivery{LineID: l.ID, DeviceID: l.DeviceID, Delivery: DeliveryOf(o, l, counted[l.ID], now)}
	}
	return total(lines, o.Price.Currency), lines, nil
}

// booked is an order that is or was booked.
func (s *Service) booked(ctx context.Context, organisationID, id string) (Order, error) {
	o, err := s.store.FindOrder(ctx, organisationID, id)
	if err != nil {
		return Order{}, err
	}
	if o.BookTime.IsZero() {
		return Order{}, StateFault(o.State)
	}
	return o, nil
}

// maxExport bounds an export: callers take messages of 4 MiB.
const maxExport = 3 << 20

// ErrExportTooLarge is what callers are told who ask for too much at once.
var ErrExportTooLarge = fault.New(fault.FailedPrecondition, "EXPORT_TOO_LARGE", "the export would have more than 3 MiB: ask for fewer lines at a time")

// ExportDelivery writes the plays of an order by lines and days as CSV (RFC 4180); only
// those of some lines, or of all without any. Errors: as Delivery, and ErrLineNotFound,
// ErrExportTooLarge.
func (s *Service) ExportDelivery(ctx context.Context, organisationID, id string, lineIDs []string) (string, error) {
	o, err := s.booked(ctx, organisationID, id)
	if err != nil {
		return "", err
	}
	if len(lineIDs) > 0 {
		if o.Lines, err = o.some(lineIDs); err != nil {
			return "", err
		}
	}
	sums, err := s.sum(ctx, o, true)
	if err != nil {
		return "", err
	}
	deviceOf := make(map[string]string, len(o.Lines))
	for _, l := range o.Lines {
		deviceOf[l.ID] = l.DeviceID
	}
	var text bytes.Buffer
	out := csv.NewWriter(&text)
	out.UseCRLF = true
	rows := [][]string{{"line_id", "device_id", "day", "plays", "counted_plays", "duration_seconds"}}
	for _, sum := range sums {
		rows = append(rows, []string{
			sum.LineID, deviceOf[sum.LineID], sum.Day, strconv.FormatInt(sum.Plays, 10), strconv.FormatInt(sum.Counted, 10),
			strconv.FormatFloat(sum.Duration.Seconds(), 'f', 3, 64),
		})
	}
	if err := out.WriteAll(rows); err != nil {
		return "", fmt.Errorf("writing the delivery of %s: %w", id, err)
	}
	if text.Len() > maxExport {
		return "", ErrExportTooLarge
	}
	return text.String(), nil
}

// some are the lines with these ids, in the order's order. Errors: ErrLineNotFound.
func (o Order) some(ids []string) (lines []Line, err error) {
	for i, id := range ids {
		if !slices.ContainsFunc(o.Lines, func(l Line) bool { return l.ID == id }) {
			return nil, ErrLineNotFound.WithField(fmt.Sprintf("line_ids[%d]", i), "line.known", "is no line of the order")
		}
	}
	return slices.DeleteFunc(slices.Clone(o.Lines), func(l Line) bool { return !slices.Contains(ids, l.ID) }), nil
}

// ListBookings returns a page of what is booked on an owner's displays, the newest
// first. Errors: paging.ErrTokenInvalid.
func (s *Service) ListBookings(ctx context.Context, ownerID string, f BookingFilter, page paging.Page) ([]Booking, string, error) {
	of := strings.Join([]string{"bookings", f.DeviceID, stamp(f.From), stamp(f.To)}, " ")
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Booking, error) {
		return s.store.ListBookings(ctx, ownerID, f, before, limit)
	}, func(b Booking) string { return b.ID })
}

// stamp is a time without characters that mean something in a page token.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strconv.FormatInt(t.UnixMicro(), 10)
}

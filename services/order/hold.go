package order

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	// MaxOrderSlots bounds the slots of an order's lines together.
	MaxOrderSlots = 10_000
	// MaxOrderTimes bounds how often an order's slots begin to be on: each is kept
	// with all its times.
	MaxOrderTimes = 100_000

	// namedConflicts bounds the lines that an error describes: many clients take
	// no more than some kilobytes of details. Its metadata has all of them.
	namedConflicts = 20
)

// What callers are told that hold air time.
var (
	ErrOrder            = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the order is not possible")
	ErrCurrenciesDiffer = fault.New(fault.InvalidArgument, "CURRENCIES_DIFFER", "the displays have prices in several currencies: make an order for each")
	ErrDisplayNotFound  = fault.New(fault.NotFound, "DISPLAY_NOT_FOUND", "there is no such display, or no player can play on it")
	ErrSlotTaken        = fault.New(fault.FailedPrecondition, "SLOT_TAKEN", "fewer slots are free than some lines want")
	ErrPriceChanged     = fault.New(fault.FailedPrecondition, "PRICE_CHANGED", "a line costs more than its max_price")
	ErrTooManyHolds     = fault.New(fault.FailedPrecondition, "TOO_MANY_HOLDS", "the organisation holds %d orders: book or cancel one first", MaxHolds)
)

// Orders keeps orders; it is a part of Store. What names an order that the
// organisation does not have fails with ErrNotFound. The state of an order that
// comes from it is Expired when its hold has expired by the database's clock. A
// request that came before gets the order that it was about, as it is now.
type Orders interface {
	// HoldOrder makes an order of a hold, all of it or nothing. Errors: what Hold.On
	// and Hold.Place say, ErrCreativeNotFound, ErrCreativeTakenDown, ErrTooManyHolds,
	// ErrRequestIDReused.
	HoldOrder(ctx context.Context, r Request, h Hold) (Order, error)
	// BookOrder pays for a held order. Errors: ErrHoldExpired, ErrState, ErrFunds,
	// ErrRequestIDReused.
	BookOrder(ctx context.Context, r Request, organisationID, id string) (Order, error)
	// CancelOrder frees what Order.Cancel leaves of an order's air time, and pays back.
	// Errors: ErrState, ErrRequestIDReused.
	CancelOrder(ctx context.Context, r Request, organisationID, id string) (Order, error)
	FindOrder(ctx context.Context, organisationID, id string) (Order, error)
	// ListOrders returns up to limit orders in a state ("" is any) whose id is less
	// than before ("" is no bound), the greatest first and without their lines.
	ListOrders(ctx context.Context, organisationID string, state State, before string, limit int) ([]Order, error)
}

// LineRequest is air time that is wanted on one display.
type LineRequest struct {
	DeviceID string
	// StartDate and EndDate are the first and the last day, as 2006-01-02.
	StartDate, EndDate string
	Dayparts           []airtime.Opening // all of the flight without any
	// Slots is how many of each loop.
	Slots int
	// MaxPrice is what the line may cost; nil is anything.
	MaxPrice *Money
	// CreativeID may be empty.
	CreativeID string
}

// HoldRequest is an order that is wanted.
type HoldRequest struct {
	OrganisationID string
	Title          string
	Lines          []LineRequest
	// Lifetime is that of the hold; 0 is DefaultHold.
	Lifetime time.Duration
}

// HoldOrder makes an order and keeps its air time until the hold expires. callerID is
// whose request id it is. Errors: ErrOrder, ErrCurrenciesDiffer, ErrAmountTooLarge,
// ErrDisplayNotFound, ErrCreativeNotFound, ErrCreativeTakenDown,
// ErrCreativeDoesNotFit, ErrSlotTaken, ErrPriceChanged, ErrTooManyHolds,
// ErrRequestIDReused.
func (s *Service) HoldOrder(ctx context.Context, callerID, requestID string, wanted HoldRequest) (Order, error) {
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		Method string
		Body   HoldRequest
	}{"HoldOrder", wanted}, now)
	if err != nil {
		return Order{}, err
	}
	id, err := s.newID("ord_", now)
	if err != nil {
		return Order{}, err
	}
	h := Hold{
		Order: Order{
			ID: id, OrganisationID: wanted.OrganisationID, Title: wanted.Title, State: Held, LineCount: len(wanted.Lines), CreateTime: now,
		},
		Lifetime: cmp.Or(wanted.Lifetime, DefaultHold),
		lines:    make([]wantedLine, len(wanted.Lines)),
	}
	slots, ids := 0, make([]string, len(wanted.Lines))
	for i, l := range wanted.Lines {
		if h.lines[i], err = l.checked(i); err != nil {
			return Order{}, err
		}
		if ids[i], err = s.newID("lin_", now); err != nil {
			return Order{}, err
		}
		slots += l.Slots
	}
	// Whoever locks several lines does it in the order of their ids, or numbers.
	slices.Sort(ids)
	for i, id := range ids {
		h.lines[i].id = id
	}
	if slots > MaxOrderSlots {
		return Order{}, ErrOrder.WithField("lines", "lines.slots", fmt.Sprintf("have %d slots together: an order has %d at most", slots, MaxOrderSlots))
	}
	held, err := s.store.HoldOrder(ctx, r, h)
	if err != nil {
		return Order{}, fmt.Errorf("holding air time: %w", err)
	}
	return held, nil
}

// linePath is a line as the API names it.
func linePath(number int) string { return "lines[" + strconv.Itoa(number) + "]" }

// wantedLine is a LineRequest that is possible, so far as that can be told without its
// display.
type wantedLine struct {
	LineRequest
	id     string
	number int    // its place in the order, from 0
	path   string // as the API names it
	flight airtime.Flight
}

// checked makes sure that a line is possible on some display. Errors: ErrOrder.
func (l LineRequest) checked(number int) (w wantedLine, err error) {
	w = wantedLine{LineRequest: l, number: number, path: linePath(number)}
	if w.flight, err = checkFlight(ErrOrder, w.path+".flight", l.StartDate, l.EndDate); err != nil {
		return wantedLine{}, err
	}
	if w.Dayparts, err = checkDayparts(ErrOrder, w.path+".dayparts", l.Dayparts); err != nil {
		return wantedLine{}, err
	}
	if l.Slots < 1 || l.Slots > MaxSlots {
		return wantedLine{}, ErrOrder.WithField(w.path+".slots", "slots.some", fmt.Sprintf("are not 1 to %d", MaxSlots))
	}
	return w, nil
}

// checkFlight reads a flight. path is where it is in the request, and invalid what a
// request with one that is not possible fails with.
func checkFlight(invalid *fault.Error, path, start, end string) (airtime.Flight, error) {
	first, err := airtime.ParseDate(start)
	if err != nil {
		return airtime.Flight{}, invalid.WithField(path+".start_date", "flight.date", "is no day of the calendar, such as 2026-12-01").Because(err)
	}
	last, err := airtime.ParseDate(end)
	if err != nil {
		return airtime.Flight{}, invalid.WithField(path+".end_date", "flight.date", "is no day of the calendar, such as 2026-12-01").Because(err)
	}
	switch days := (airtime.Flight{First: first, Last: last}).Days(); {
	case days < 1:
		return airtime.Flight{}, invalid.WithField(path+".end_date", "flight.order", "is before start_date")
	case days > MaxFlight:
		return airtime.Flight{}, invalid.WithField(path+".end_date", "flight.length", fmt.Sprintf("is %d days from start_date: a flight has %d at most", days, MaxFlight))
	}
	return airtime.Flight{First: first, Last: last}, nil
}

// checkDayparts puts dayparts in their order. path is where they are in the request,
// and invalid what a request with some that are not possible fails with.
func checkDayparts(invalid *fault.Error, path string, dayparts []airtime.Opening) ([]airtime.Opening, error) {
	if err := airtime.Check(dayparts); err != nil {
		return nil, invalid.WithField(path, "dayparts.possible", err.Error())
	}
	return airtime.Sorted(dayparts), nil
}

// Hold is an order that is wanted. A store makes it with On and then Place, while
// nobody else changes what is reserved on its displays.
type Hold struct {
	// Order is what is known without the displays: no lines, and no price.
	Order    Order
	Lifetime time.Duration
	lines    []wantedLine
}

// DeviceIDs are the displays of its lines, each once.
func (h Hold) DeviceIDs() []string {
	return distinct(h.lines, func(l wantedLine) string { return l.DeviceID })
}

// CreativeIDs are what its lines show, each once.
func (h Hold) CreativeIDs() []string {
	return distinct(h.lines, func(l wantedLine) string { return l.CreativeID })
}

// distinct are what lines have, in its order, each once and none that is empty.
func distinct[L any](lines []L, of func(L) string) []string {
	var all []string
	for _, l := range lines {
		if s := of(l); s != "" {
			all = append(all, s)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// On is the order with its lines on these displays, still without slots. showing are
// the newest contents of what they show. Errors: ErrOrder, ErrDisplayNotFound,
// ErrPriceChanged, ErrCurrenciesDiffer, ErrAmountTooLarge, ErrCreativeDoesNotFit.
func (h Hold) On(displays map[string]Display, showing map[string]Contents) (Order, error) {
	o := h.Order
	o.Lines = make([]Line, len(h.lines))
	times := 0
	for i, w := range h.lines {
		d, known := displays[w.DeviceID]
		if !known || !d.Playable {
			return Order{}, ErrDisplayNotFound.WithField(w.path+".device_id", "display.known", "is no display that can be booked")
		}
		line, err := w.on(d, o.CreateTime)
		if err != nil {
			return Order{}, err
		}
		line.OrderID, line.Number = o.ID, w.number
		if w.CreativeID != "" && !showing[w.CreativeID].Fits(d.SlotLength) {
			return Order{}, ErrCreativeDoesNotFit.WithField(w.path+".creative_id", "creative.fits", "is longer than a slot of the display")
		}
		currency := d.SlotPrice.Currency
		if i == 0 {
			o.Price.Currency = currency
		}
		if o.Price.Currency != currency {
			return Order{}, ErrCurrenciesDiffer.WithField(w.path+".device_id", "currency.same", fmt.Sprintf("has prices in %s, and that of %s in %s", currency, linePath(0), o.Price.Currency))
		}
		if o.Price.Minor += line.PriceMinor; o.Price.Minor > MaxAmount {
			return Order{}, ErrAmountTooLarge.WithField("lines", "price.bound", "cost more together")
		}
		if times += len(line.Times) * w.Slots; times > MaxOrderTimes {
			return Order{}, ErrOrder.WithField("lines", "lines.times", fmt.Sprintf("are on more than %d times, each slot counted: make several orders, or longer dayparts", MaxOrderTimes))
		}
		if line.End().After(o.EndTime) {
			o.EndTime = line.End()
		}
		o.Lines[i] = line
	}
	return o, apart(o.Lines)
}

// on is the line on its display from now on.
func (w wantedLine) on(d Display, now time.Time) (Line, error) {
	zone, err := time.LoadLocation(d.TimeZone)
	if err != nil {
		return Line{}, fmt.Errorf("finding the time zone of %s: %w", d.DeviceID, err)
	}
	today := airtime.DateOf(now, zone)
	switch {
	case w.flight.First.Compare(today) < 0:
		return Line{}, ErrOrder.WithField(w.path+".flight.start_date", "flight.past", "is before today at the display, "+today.String())
	case w.flight.First.Compare(today.Add(int(MaxAhead/(24*time.Hour)))) > 0:
		return Line{}, ErrOrder.WithField(w.path+".flight.start_date", "flight.ahead", "is more than two years ahead")
	case w.Slots > d.Slots():
		return Line{}, ErrOrder.WithField(w.path+".slots", "slots.loop", fmt.Sprintf("are more than a loop of the display has: %d", d.Slots()))
	}
	line := Line{
		ID: w.id, DeviceID: d.DeviceID, OwnerID: d.OrganisationID, Flight: w.flight, Dayparts: w.Dayparts,
		LoopLength: d.LoopLength, SlotLength: d.SlotLength, TimeZone: d.TimeZone, CreativeID: w.CreativeID,
		Times: airtime.Times(zone, w.flight, w.Dayparts, d.Hours),
	}
	line.Times = line.left(now)
	if line.Plays = PlaysOf(line.Times, d.LoopLength, w.Slots); line.Plays == 0 {
		return Line{}, ErrOrder.WithField(w.path, "line.on", "the display is not on for as long as a loop in what is left of this flight and these dayparts")
	}
	price, err := PriceOf(line.Plays, d.SlotPrice)
	if err != nil {
		return Line{}, ErrAmountTooLarge.WithField(w.path, "price.bound", "costs more").Because(err)
	}
	if most := w.MaxPrice; most != nil && (price.Currency != most.Currency || price.Minor > most.Minor) {
		changed := *ErrPriceChanged.WithField(w.path+".max_price", "price.bound", fmt.Sprintf("is not enough: the line costs %d minor units of %s", price.Minor, price.Currency))
		changed.Meta = map[string]string{"line": strconv.Itoa(w.number), "amount_minor": strconv.FormatInt(price.Minor, 10), "currency": price.Currency}
		return Line{}, &changed
	}
	line.PriceMinor = price.Minor
	return line, nil
}

// apart fails for lines of one display whose times overlap. Errors: ErrOrder.
func apart(lines []Line) error {
	type on struct {
		airtime.Range
		line int
	}
	byDisplay := map[string][]on{}
	for i, l := range lines {
		for _, r := range l.Times {
			byDisplay[l.DeviceID] = append(byDisplay[l.DeviceID], on{r, i})
		}
	}
	for _, all := range byDisplay {
		slices.SortFunc(all, func(a, b on) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.line, b.line)) })
		for i := 1; i < len(all); i++ {
			if before, r := all[i-1], all[i]; r.From.Before(before.Until) {
				one, other := min(before.line, r.line), max(before.line, r.line)
				return ErrOrder.WithField(linePath(other), "lines.overlap", "overlaps "+linePath(one)+" on the same display: ask for more slots in one line")
			}
		}
	}
	return nil
}

// Place gives the lines of an order from On their slots: the first that are free.
// taken are, for each line, positions of the loop that somebody else has at some of
// its times. Errors: ErrSlotTaken with the lines that conflict and what is free.
func (h Hold) Place(o *Order, taken [][]int) error {
	conflict := *ErrSlotTaken
	var lines, frees []string
	for i := range o.Lines {
		l := &o.Lines[i]
		total := int(l.LoopLength / l.SlotLength)
		used := make([]bool, total)
		for _, slot := range taken[i] {
			if slot < total { // beyond it are what was sold when the loop was longer
				used[slot] = true
			}
		}
		var free []int
		for slot := range total {
			if !used[slot] {
				free = append(free, slot)
			}
		}
		if wanted := h.lines[i].Slots; len(free) >= wanted {
			l.Slots = free[:wanted:wanted]
			continue
		}
		if len(lines) < namedConflicts {
			conflict = *conflict.WithField(h.lines[i].path+".slots", "slots.free", fmt.Sprintf("%d of %d slots are free during all of the line", len(free), total))
		}
		lines, frees = append(lines, strconv.Itoa(i)), append(frees, strconv.Itoa(len(free)))
	}
	if lines == nil {
		return nil
	}
	conflict.Meta = map[string]string{"lines": strings.Join(lines, ","), "free_slots": strings.Join(frees, ",")}
	return &conflict
}

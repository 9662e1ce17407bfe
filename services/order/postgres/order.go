package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// HoldOrder implements order.Store.
func (s *Store) HoldOrder(ctx context.Context, r order.Request, h order.Hold) (held order.Order, err error) {
	organisationID := h.Order.OrganisationID
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		before, err := w.once(ctx, r, h.Order.ID)
		if err != nil {
			return err
		}
		if before != "" {
			held, err = findOrder(ctx, w.Queries, organisationID, before)
			return err
		}
		showing := map[string]order.Contents{}
		for _, id := range h.CreativeIDs() {
			if showing[id], err = w.showable(ctx, organisationID, id); err != nil {
				return err
			}
		}
		if err := w.lockDisplays(ctx, h.DeviceIDs()); err != nil {
			return err
		}
		on, err := displays(ctx, w.Queries, h.DeviceIDs())
		if err != nil {
			return err
		}
		if held, err = h.On(on, showing); err != nil {
			return err
		}
		taken, err := w.taken(ctx, held.Lines, on)
		if err != nil {
			return err
		}
		if err := h.Place(&held, taken); err != nil {
			return err
		}
		now, err := w.boundHolds(ctx, organisationID)
		if err != nil {
			return err
		}
		held.HoldExpireTime = now.Add(h.Lifetime).UTC().Truncate(time.Microsecond) // as Postgres keeps it
		if err := w.later.InsertOrder(ctx, query.InsertOrderParams{
			OrderID: held.ID, OrganisationID: organisationID, Title: held.Title, State: string(held.State),
			PriceMinor: held.Price.Minor, Currency: held.Price.Currency, LineCount: int32(held.LineCount),
			CreateTime: held.CreateTime, HoldExpireTime: held.HoldExpireTime, EndTime: held.EndTime,
		}); err != nil {
			return err
		}
		if err := w.insertLines(ctx, held); err != nil {
			return err
		}
		return w.reserve(ctx, held, on)
	})
	return held, err
}

// boundHolds makes sure that an organisation may hold one more order, and returns what
// time it is by the database's clock. Errors: order.ErrTooManyHolds.
func (w work) boundHolds(ctx context.Context, organisationID string) (now time.Time, err error) {
	if err := w.later.LockHoldsOf(ctx, organisationID); err != nil {
		return time.Time{}, err
	}
	holds, err := w.CountHolds(ctx, organisationID)
	if err != nil {
		return time.Time{}, err
	}
	if holds.Count >= order.MaxHolds {
		return time.Time{}, order.ErrTooManyHolds
	}
	return holds.Clock, nil
}

func (w work) insertLines(ctx context.Context, o order.Order) error {
	rows := make([]query.InsertLinesParams, len(o.Lines))
	for i, l := range o.Lines {
		dayparts, err := json.Marshal(append([]airtime.Opening{}, l.Dayparts...))
		if err != nil {
			return fmt.Errorf("writing dayparts: %w", err)
		}
		slots := make([]int32, len(l.Slots))
		for n, slot := range l.Slots {
			slots[n] = int32(slot)
		}
		rows[i] = query.InsertLinesParams{
			LineID: l.ID, OrderID: o.ID, LineNumber: int32(l.Number), DeviceID: l.DeviceID, OwnerID: l.OwnerID,
			StartDate: date(l.Flight.First), EndDate: date(l.Flight.Last), Dayparts: dayparts, Slots: slots,
			LoopSeconds: seconds(l.LoopLength), SlotSeconds: seconds(l.SlotLength), TimeZone: l.TimeZone,
			StartTime: l.Start(), EndTime: l.End(), Times: multirange(l.Times), Plays: l.Plays, PriceMinor: l.PriceMinor, CreativeID: l.CreativeID,
		}
	}
	var first error
	w.InsertLines(ctx, rows).Exec(func(_ int, err error) { first = cmp.Or(first, err) })
	return first
}

// BookOrder implements order.Store. The wallet is paid from last: whoever pays from
// the same waits until the transaction ends.
func (s *Store) BookOrder(ctx context.Context, r order.Request, organisationID, id string) (order.Order, error) {
	return s.changeOrder(ctx, r, organisationID, id, func(ctx context.Context, w work, o order.Order) error {
		booked, err := o.Book(r.Time)
		if err != nil {
			return err
		}
		// Creatives are locked before displays, as by who holds air time.
		for _, creativeID := range booked.CreativeIDs() {
			if _, err := w.ShareCreative(ctx, creativeID); err != nil {
				return err
			}
		}
		if err := w.keep(ctx, booked); err != nil {
			return err
		}
		if err := w.updateOrder(ctx, booked); err != nil {
			return err
		}
		if err := w.later.BookLines(ctx, id); err != nil {
			return err
		}
		for _, creativeID := range booked.CreativeIDs() {
			if err := w.askApproval(ctx, r.Time, creativeID); err != nil {
				return err
			}
		}
		if err := w.tell(ctx, r.Time, lineIDs(booked)...); err != nil {
			return err
		}
		return w.move(ctx, r.Time, booked.PaymentEntry())
	})
}

// CancelOrder implements order.Store.
func (s *Store) CancelOrder(ctx context.Context, r order.Request, organisationID, id string) (order.Order, error) {
	return s.changeOrder(ctx, r, organisationID, id, func(ctx context.Context, w work, o order.Order) error {
		cancelled, err := o.Cancel(r.Time)
		if err != nil {
			return err
		}
		if err := w.lockDisplays(ctx, o.DeviceIDs()); err != nil {
			return err
		}
		if err := w.updateOrder(ctx, cancelled); err != nil {
			return err
		}
		if o.State == order.Held {
			return w.later.DeleteReservations(ctx, lineIDs(o))
		}
		if err := w.later.LockLinesOf(ctx, id); err != nil {
			return err
		}
		if err := w.cutLines(ctx, cancelled.Lines); err != nil {
			return err
		}
		if err := w.free(ctx, cancelled); err != nil {
			return err
		}
		if err := w.tell(ctx, r.Time, lineIDs(cancelled)...); err != nil {
			return err
		}
		return w.payOut(ctx, r.Time, cancelled)
	})
}

func (w work) cutLines(ctx context.Context, lines []order.Line) error {
	rows := make([]query.CutLinesParams, len(lines))
	for i, l := range lines {
		rows[i] = query.CutLinesParams{LineID: l.ID, Times: multirange(l.Times), Plays: l.Plays}
	}
	var first error
	w.CutLines(ctx, rows).Exec(func(_ int, err error) { first = cmp.Or(first, err) })
	return first
}

// changeOrder runs do in a transaction while nobody else can change the order, unless
// the request came before, and returns what the order is like then. do gets it as it
// is before.
func (s *Store) changeOrder(ctx context.Context, r order.Request, organisationID, id string, do func(context.Context, work, order.Order) error) (changed order.Order, err error) {
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		before, err := w.once(ctx, r, id)
		if err != nil {
			return err
		}
		if before == "" {
			o, err := w.lockOrder(ctx, organisationID, id)
			if err != nil {
				return err
			}
			if err := do(ctx, w, o); err != nil {
				return err
			}
		}
		changed, err = findOrder(ctx, w.Queries, organisationID, id)
		return err
	})
	return changed, err
}

// lockOrder is an order that nobody else changes until the transaction ends. It is
// locked before its creatives, displays, lines and accounts are. Errors:
// order.ErrNotFound.
func (w work) lockOrder(ctx context.Context, organisationID, id string) (order.Order, error) {
	row, err := w.LockOrder(ctx, query.LockOrderParams{OrganisationID: organisationID, OrderID: id})
	if none(err) {
		return order.Order{}, order.ErrNotFound.Because(err)
	}
	if err != nil {
		return order.Order{}, err
	}
	return readLines(ctx, w.Queries, orderOf(query.OrderRow(row)))
}

func (w work) updateOrder(ctx context.Context, o order.Order) error {
	return w.later.UpdateOrder(ctx, query.UpdateOrderParams{
		OrderID: o.ID, State: string(o.State), BookTime: stored(o.BookTime), CancelTime: stored(o.CancelTime), RefundedMinor: o.RefundedMinor,
	})
}

// FindOrder implements order.Store.
func (s *Store) FindOrder(ctx context.Context, organisationID, id string) (o order.Order, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		o, err = findOrder(ctx, s.q, organisationID, id)
		return err
	})
	return o, err
}

func findOrder(ctx context.Context, q *query.Queries, organisationID, id string) (order.Order, error) {
	row, err := q.Order(ctx, query.OrderParams{OrganisationID: organisationID, OrderID: id})
	if none(err) {
		return order.Order{}, order.ErrNotFound.Because(err)
	}
	if err != nil {
		return order.Order{}, err
	}
	return readLines(ctx, q, orderOf(row))
}

// readLines is the order with its lines.
func readLines(ctx context.Context, q *query.Queries, o order.Order) (order.Order, error) {
	rows, err := q.LinesOf(ctx, o.ID)
	if err != nil {
		return order.Order{}, err
	}
	o.Lines = make([]order.Line, len(rows))
	for i, row := range rows {
		if o.Lines[i], err = lineOf(row.Line); err != nil {
			return order.Order{}, err
		}
	}
	return o, nil
}

// ListOrders implements order.Store.
func (s *Store) ListOrders(ctx context.Context, organisationID string, state order.State, before string, limit int) ([]order.Order, error) {
	var rows []query.OrdersRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Orders(ctx, query.OrdersParams{
			OrganisationID: organisationID, Before: before, AtMost: int32(limit),
			State: string(state), Held: string(order.Held), Expired: string(order.Expired),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]order.Order, len(rows))
	for i, row := range rows {
		found[i] = orderOf(query.OrderRow(row))
	}
	return found, nil
}

// What one Sweep removes at most of each kind: batches of rows, each a short
// transaction.
const (
	sweepBatch   = 1000
	sweepBatches = 50
)

// Sweep ends holds that are over, and removes what is not needed any more: a bounded
// number in one call. It says how many rows that were. Nothing waits for it, and
// instances may sweep at once.
func (s *Store) Sweep(ctx context.Context, now time.Time) (int64, error) {
	expired, err := order.Held.After(order.Expire)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, sweep := range []func(context.Context) (int64, error){
		func(ctx context.Context) (int64, error) {
			return s.q.ExpireOrders(ctx, query.ExpireOrdersParams{Expired: string(expired), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) { return s.q.SweepReservations(ctx, sweepBatch) },
		func(ctx context.Context) (int64, error) {
			return s.q.SweepRequests(ctx, query.SweepRequestsParams{Now: now, Batch: sweepBatch})
		},
	} {
		for range sweepBatches {
			var swept int64
			err := s.db.Call(ctx, func(ctx context.Context) (err error) {
				swept, err = sweep(ctx)
				return err
			})
			total += swept
			if err != nil {
				return total, err
			}
			if swept < sweepBatch {
				break
			}
		}
	}
	return total, nil
}

func orderOf(row query.OrderRow) order.Order {
	r, state := row.Order, order.State(row.Order.State)
	if row.HoldOver {
		// Whether the sweep has come by or not.
		if next, err := state.After(order.Expire); err == nil {
			state = next
		}
	}
	return order.Order{
		ID: r.OrderID, OrganisationID: r.OrganisationID, Title: r.Title, State: state,
		Price: order.Money{Minor: r.PriceMinor, Currency: r.Currency}, RefundedMinor: r.RefundedMinor, LineCount: int(r.LineCount),
		CreateTime: r.CreateTime.UTC(), HoldExpireTime: r.HoldExpireTime.UTC(), BookTime: timeOf(r.BookTime), CancelTime: timeOf(r.CancelTime),
		EndTime: r.EndTime.UTC(),
	}
}

func lineOf(r query.Line) (order.Line, error) {
	l := order.Line{
		ID: r.LineID, OrderID: r.OrderID, Number: int(r.LineNumber), DeviceID: r.DeviceID, OwnerID: r.OwnerID,
		Flight:     airtime.Flight{First: dayOf(r.StartDate), Last: dayOf(r.EndDate)},
		Slots:      make([]int, len(r.Slots)),
		LoopLength: time.Duration(r.LoopSeconds) * time.Second, SlotLength: time.Duration(r.SlotSeconds) * time.Second,
		TimeZone: r.TimeZone, Times: rangesOf(r.Times), Plays: r.Plays,
		PriceMinor: r.PriceMinor, RefundedMinor: r.RefundedMinor, EarnedMinor: r.EarnedMinor, Booked: r.Booked,
		CreativeID: r.CreativeID.String, ShownVersion: int(r.ShownVersion), ShowingNumber: int(r.ShowingNumber), Revision: r.Revision,
	}
	if err := json.Unmarshal(r.Dayparts, &l.Dayparts); err != nil {
		return order.Line{}, fmt.Errorf("reading the dayparts of %s: %w", r.LineID, err)
	}
	if len(l.Dayparts) == 0 {
		l.Dayparts = nil
	}
	for i, slot := range r.Slots {
		l.Slots[i] = int(slot)
	}
	return l, nil
}

func lineIDs(o order.Order) []string {
	ids := make([]string, len(o.Lines))
	for i, l := range o.Lines {
		ids[i] = l.ID
	}
	return ids
}

func date(d airtime.Date) pgtype.Date { return pgtype.Date{Time: d.Midnight(), Valid: true} }

func seconds(d time.Duration) int32 { return int32(d / time.Second) }

// timeOf is the zero time for null.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// stored is null for the zero time.
func stored(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func rangesOf(m pgtype.Multirange[pgtype.Range[pgtype.Timestamptz]]) []airtime.Range {
	var times []airtime.Range
	for _, r := range m {
		times = append(times, airtime.Range{From: r.Lower.Time.UTC(), Until: r.Upper.Time.UTC()})
	}
	return times
}

// multirange is an empty one, and not null, for no times.
func multirange(times []airtime.Range) pgtype.Multirange[pgtype.Range[pgtype.Timestamptz]] {
	m := pgtype.Multirange[pgtype.Range[pgtype.Timestamptz]]{}
	for _, r := range times {
		m = append(m, pgtype.Range[pgtype.Timestamptz]{
			Lower: pgtype.Timestamptz{Time: r.From, Valid: true}, Upper: pgtype.Timestamptz{Time: r.Until, Valid: true},
			LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
		})
	}
	return m
}

// timesText is what Postgres reads as a tstzmultirange: lists of those go there as
// text.
func timesText(times []airtime.Range) string {
	text := []byte{'{'}
	for i, r := range times {
		if i > 0 {
			text = append(text, ',')
		}
		text = r.From.AppendFormat(append(text, '['), time.RFC3339Nano)
		text = r.Until.AppendFormat(append(text, ','), time.RFC3339Nano)
		text = append(text, ')')
	}
	return string(append(text, '}'))
}

package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// placesOfDisplay is how many places a display has in reservations: more than slots.
const placesOfDisplay = 4096

// place is one slot of a display, as reservations.place names it.
func place(d order.Display, slot int) int64 { return d.Number*placesOfDisplay + int64(slot) }

// taken are, for each line, the slots of its display that somebody else has at some
// of its times, when holds that are over are gone. The displays are locked.
func (w work) taken(ctx context.Context, lines []order.Line, displays map[string]order.Display) ([][]int, error) {
	wanted, numbers := make([]query.TakenPlacesParams, len(lines)), make([]int64, len(lines))
	for i, l := range lines {
		d := displays[l.DeviceID]
		numbers[i] = d.Number
		wanted[i] = query.TakenPlacesParams{FromPlace: place(d, 0), UntilPlace: place(d, placesOfDisplay), Times: multirange(l.Times)}
	}
	slices.Sort(numbers)
	if err := w.later.DeleteExpiredReservations(ctx, slices.Compact(numbers)); err != nil {
		return nil, err
	}
	var first error
	taken := make([][]int, len(lines))
	w.TakenPlaces(ctx, wanted).Query(func(i int, places []int64, err error) {
		first = cmp.Or(first, err)
		for _, p := range places {
			taken[i] = append(taken[i], int(p-wanted[i].FromPlace))
		}
	})
	return taken, first
}

// reserve keeps the slots of an order's lines until its hold expires. Errors:
// order.ErrSlotTaken.
func (w work) reserve(ctx context.Context, o order.Order, displays map[string]order.Display) error {
	p := query.InsertReservationsParams{HoldExpireTime: o.HoldExpireTime}
	for _, l := range o.Lines {
		for _, slot := range l.Slots {
			p.LineIds = append(p.LineIds, l.ID)
			p.Places = append(p.Places, place(displays[l.DeviceID], slot))
		}
	}
	err := w.InsertReservations(ctx, p)
	if database.Violated(err) == "reservations_no_double_sale" {
		return order.ErrSlotTaken.Because(err)
	}
	return err
}

// keep makes an order's reservations last. Errors: order.ErrHoldExpired when some of
// them are gone.
func (w work) keep(ctx context.Context, o order.Order) error {
	if err := w.lockDisplays(ctx, o.DeviceIDs()); err != nil {
		return err
	}
	kept, err := w.BookReservations(ctx, lineIDs(o))
	if err != nil {
		return err
	}
	var slots int64
	for _, l := range o.Lines {
		slots += int64(len(l.Slots))
	}
	if kept != slots {
		return order.ErrHoldExpired.Because(fmt.Errorf("%d of %d reservations are left", kept, slots))
	}
	return nil
}

// free leaves of an order's reservations what its lines still are.
func (w work) free(ctx context.Context, o order.Order) error {
	var gone, cut []string
	for _, l := range o.Lines {
		if len(l.Times) == 0 {
			gone = append(gone, l.ID)
		} else {
			cut = append(cut, l.ID)
		}
	}
	if err := w.later.DeleteReservations(ctx, gone); err != nil {
		return err
	}
	return w.later.CutReservations(ctx, cut)
}

package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/events"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// deviceDeleted is the subject of the last event about a device.
const deviceDeleted = "device.deleted"

// Displays is where DisplayHandler puts what it is told.
type Displays interface {
	// PutDisplay makes it part of a transaction that a display is like this.
	PutDisplay(ctx context.Context, tx pgx.Tx, d order.Display) error
}

// DisplayHandler handles the events of the stream DEVICE: each, a DeviceChanged, tells
// how a device is from then on. One that says something else is set aside.
func DisplayHandler(displays Displays) events.Handler {
	return func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		var changed devicev1.DeviceChanged
		if err := proto.Unmarshal(e.Payload, &changed); err != nil {
			return events.Permanent(fmt.Errorf("the event %s about %s is no DeviceChanged: %w", e.Subject, e.Key, err))
		}
		d, err := DisplayOf(changed.GetDevice())
		if err != nil {
			return events.Permanent(fmt.Errorf("reading the event %s about %s: %w", e.Subject, e.Key, err))
		}
		d.Playable = d.Playable && e.Subject != deviceDeleted
		return displays.PutDisplay(ctx, tx, d)
	}
}

// DisplayOf is a display as the device service tells of it. The error says what makes
// it none.
func DisplayOf(m *devicev1.Device) (order.Display, error) {
	s := m.GetSettings()
	d := order.Display{
		DeviceID: m.GetDeviceId(), OrganisationID: m.GetOrganisationId(), Name: s.GetName(),
		Latitude: s.GetPlace().GetLatitude(), Longitude: s.GetPlace().GetLongitude(), Address: s.GetPlace().GetAddress(),
		VenueType: s.GetVenueType(), WidthPX: int(s.GetScreen().GetWidthPx()), HeightPX: int(s.GetScreen().GetHeightPx()),
		LoopLength: time.Duration(s.GetLoopLengthSeconds()) * time.Second, SlotLength: time.Duration(s.GetSlotLengthSeconds()) * time.Second,
		SlotPrice: order.Money{Minor: s.GetSlotPrice().GetAmountMinor(), Currency: s.GetSlotPrice().GetCurrency()}, TimeZone: s.GetTimeZone(),
		Revision: m.GetRevision(), Playable: m.GetState() == devicev1.DeviceState_DEVICE_STATE_CLAIMED,
	}
	for _, h := range s.GetHours() {
		d.Hours = append(d.Hours, airtime.Opening{Weekday: int(h.GetWeekday()), Open: int(h.GetOpenMinute()), Close: int(h.GetCloseMinute())})
	}
	switch {
	case d.DeviceID == "":
		return order.Display{}, errors.New("it names no device")
	case d.SlotLength <= 0 || d.LoopLength <= 0 || d.LoopLength%d.SlotLength != 0 || d.Slots() > order.MaxSlots:
		return order.Display{}, fmt.Errorf("device %s has a loop of %s, which is not 1 to %d slots of %s", d.DeviceID, d.LoopLength, order.MaxSlots, d.SlotLength)
	}
	return d, nil
}

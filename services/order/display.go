package order

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
)

// DisplayStore keeps a copy of what the device service has; it is a part of Store.
// What is known of displays comes in events, and now and then all of it is read.
type DisplayStore interface {
	// Displays returns those of ids that are known, by their ids: also those that no
	// player can play on, and those that were deleted, which are not playable.
	Displays(ctx context.Context, ids []string) (map[string]Display, error)
	// SearchDisplays returns up to limit playable displays that pass the filter and
	// whose id is greater than after ("" is no bound), the least first.
	SearchDisplays(ctx context.Context, f DisplayFilter, after string, limit int) ([]Display, error)
	// TakenSlots says how many of the wanted slots of displays somebody else has, by
	// their numbers: at some moment of the set of times that is wanted. Displays of
	// which all are free may be missing. Expired holds have nothing.
	TakenSlots(ctx context.Context, sets [][]airtime.Range, wanted []WantedSlots) (map[int64]int, error)
	// Clock is the database's.
	Clock(ctx context.Context) (time.Time, error)
	// SyncDisplays makes the copy like a part of the list of all displays, and says how
	// many it changed. What events told after the part was read stays.
	SyncDisplays(ctx context.Context, part DisplayPart) (changed int, err error)
	// SyncAlone calls do unless another instance is at it, and says whether it did.
	SyncAlone(ctx context.Context, do func(context.Context) error) (did bool, err error)
}

// WantedSlots are those of one display.
type WantedSlots struct {
	// Number is the display's.
	Number int64
	// Slots is how many of them from the first.
	Slots int
	// Set is the place of the times in a list of them.
	Set int
}

// DisplayPart is all displays whose ids are in a range.
type DisplayPart struct {
	// ReadTime is what the database's clock showed before it was read.
	ReadTime time.Time
	// Before is greater than all ids of the range; "" is no bound.
	Before string
	// From is the least id of the range; "" is no bound.
	From     string
	Displays []Display
}

// ErrDevicesUnavailable says that displays cannot be read.
var ErrDevicesUnavailable = fault.New(fault.Unavailable, "DEVICES_UNAVAILABLE", "displays cannot be read at the moment: the device service does not answer").
	WithRetryAfter(2 * time.Second)

// Devices is the device service, which knows what displays there are.
type Devices interface {
	// ListDisplays returns a page of all displays that can be sold, those with the
	// greatest ids first, and the token of the next, empty on the last. A page may have
	// none. Their numbers are not set. Errors: ErrDevicesUnavailable.
	ListDisplays(ctx context.Context, token string) ([]Display, string, error)
}

// SyncDisplays reads all displays and makes the copy like them, unless another
// instance is at it. Displays that are gone stay, and are not playable. It says how
// many it changed. After an error it may be called again.
func (s *Service) SyncDisplays(ctx context.Context, devices Devices) (changed int, err error) {
	_, err = s.store.SyncAlone(ctx, func(ctx context.Context) error {
		for token, before := "", ""; ; {
			read, err := s.store.Clock(ctx)
			if err != nil {
				return fmt.Errorf("reading the database's clock: %w", err)
			}
			displays, next, err := devices.ListDisplays(ctx, token)
			if err != nil {
				return fmt.Errorf("reading displays: %w", err)
			}
			part := DisplayPart{ReadTime: read, Before: before, Displays: displays}
			if next != "" {
				if next == token {
					return fmt.Errorf("reading displays: after %q comes a page without an end", before)
				}
				token = next
				if len(displays) == 0 {
					continue
				}
				part.From = displays[len(displays)-1].DeviceID
			}
			n, err := s.store.SyncDisplays(ctx, part)
			if err != nil {
				return fmt.Errorf("storing displays: %w", err)
			}
			changed += n
			if next == "" {
				return nil
			}
			before = part.From
		}
	})
	return changed, err
}

// Equal says whether two displays are the same, whatever their numbers.
func (d Display) Equal(o Display) bool {
	return d.DeviceID == o.DeviceID && d.OrganisationID == o.OrganisationID && d.Name == o.Name &&
		d.Latitude == o.Latitude && d.Longitude == o.Longitude && d.Address == o.Address && d.VenueType == o.VenueType &&
		d.WidthPX == o.WidthPX && d.HeightPX == o.HeightPX && d.LoopLength == o.LoopLength && d.SlotLength == o.SlotLength &&
		d.SlotPrice == o.SlotPrice && d.TimeZone == o.TimeZone && slices.Equal(d.Hours, o.Hours) &&
		d.Revision == o.Revision && d.Playable == o.Playable
}

package server

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// SearchAvailability returns a page of displays with what is free on them.
func (s *Server) SearchAvailability(ctx context.Context, req *orderv1.SearchAvailabilityRequest) (*orderv1.SearchAvailabilityResponse, error) {
	search := order.Search{
		StartDate: req.GetFlight().GetStartDate(), EndDate: req.GetFlight().GetEndDate(), Dayparts: daypartsOf(req.GetDayparts()),
		Slots: int(req.GetSlots()), IncludeFull: req.GetIncludeFull(),
		Filter: order.DisplayFilter{
			IDs: req.GetDeviceIds(), VenueTypes: req.GetVenueTypes(), Orientation: orientationOf(req.GetOrientation()),
			MinWidthPX: int(req.GetMinWidthPx()), MinHeightPX: int(req.GetMinHeightPx()),
		},
	}
	if a := req.GetArea(); a != nil {
		search.Filter.Area = &order.Area{South: a.GetSouth(), West: a.GetWest(), North: a.GetNorth(), East: a.GetEast()}
	}
	if most := req.GetMaxSlotPrice(); most != nil {
		search.Filter.MaxSlotPrice = &order.Money{Minor: most.GetAmountMinor(), Currency: most.GetCurrency()}
	}
	found, next, err := s.service.SearchAvailability(ctx, search, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.SearchAvailabilityResponse{Displays: service.Messages(found, availabilityMessage), NextPageToken: next}, nil
}

// orientationOf is empty for any.
func orientationOf(o orderv1.Orientation) order.Orientation {
	switch o {
	case orderv1.Orientation_ORIENTATION_LANDSCAPE:
		return order.Landscape
	case orderv1.Orientation_ORIENTATION_PORTRAIT:
		return order.Portrait
	default:
		return ""
	}
}

func availabilityMessage(a order.Availability) *orderv1.Availability {
	d := a.Display
	return &orderv1.Availability{
		DeviceId: d.DeviceID, Name: d.Name, Place: &orderv1.Place{Latitude: d.Latitude, Longitude: d.Longitude, Address: d.Address},
		VenueType: d.VenueType, WidthPx: int32(d.WidthPX), HeightPx: int32(d.HeightPX), TimeZone: d.TimeZone,
		SlotLengthSeconds: int32(d.SlotLength / time.Second), SlotsPerLoop: int32(d.Slots()), FreeSlots: int32(a.FreeSlots),
		SlotPrice: moneyMessage(d.SlotPrice), Plays: a.Plays, Price: moneyMessage(a.Price),
	}
}

package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// GetDelivery returns what was played of an order.
func (s *Server) GetDelivery(ctx context.Context, req *orderv1.GetDeliveryRequest) (*orderv1.GetDeliveryResponse, error) {
	total, lines, err := s.service.Delivery(ctx, req.GetOrganisationId(), req.GetOrderId())
	if err != nil {
		return nil, err
	}
	return &orderv1.GetDeliveryResponse{Total: deliveryMessage(total), Lines: service.Messages(lines, func(l order.LineDelivery) *orderv1.LineDelivery {
		return &orderv1.LineDelivery{LineId: l.LineID, DeviceId: l.DeviceID, Delivery: deliveryMessage(l.Delivery)}
	})}, nil
}

// ExportDelivery returns the same by days as CSV.
func (s *Server) ExportDelivery(ctx context.Context, req *orderv1.ExportDeliveryRequest) (*orderv1.ExportDeliveryResponse, error) {
	text, err := s.service.ExportDelivery(ctx, req.GetOrganisationId(), req.GetOrderId(), req.GetLineIds())
	if err != nil {
		return nil, err
	}
	return &orderv1.ExportDeliveryResponse{Csv: text}, nil
}

// ListBookings returns a page of what is booked on an organisation's displays.
func (s *Server) ListBookings(ctx context.Context, req *orderv1.ListBookingsRequest) (*orderv1.ListBookingsResponse, error) {
	filter := order.BookingFilter{DeviceID: req.GetDeviceId(), From: timeOf(req.GetFromTime()), To: timeOf(req.GetToTime())}
	found, next, err := s.service.ListBookings(ctx, req.GetOrganisationId(), filter, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.ListBookingsResponse{Bookings: service.Messages(found, bookingMessage), NextPageToken: next}, nil
}

func bookingMessage(b order.Booking) *orderv1.Booking {
	return &orderv1.Booking{
		Line: lineMessage(b.Line, b.Currency), State: stateMessage(b.State), BuyerOrganisationId: b.BuyerID,
		Earned: moneyMessage(order.Money{Minor: b.EarnedMinor, Currency: b.Currency}),
	}
}

func deliveryMessage(d order.Delivery) *orderv1.Delivery {
	return &orderv1.Delivery{
		BookedPlays: d.BookedPlays, ScheduledPlays: d.ScheduledPlays, DeliveredPlays: d.DeliveredPlays,
		DeliveredPercent: d.DeliveredPercent(), PacingPercent: d.PacingPercent(), ForecastPlays: d.ForecastPlays,
		MakeGoodPlays: d.MakeGoodPlays, MakeGood: moneyMessage(d.MakeGood),
	}
}

// timeOf is zero for an unset timestamp.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

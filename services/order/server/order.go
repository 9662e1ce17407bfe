package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// HoldOrder makes an order and keeps its air time for some minutes.
func (s *Server) HoldOrder(ctx context.Context, req *orderv1.HoldOrderRequest) (*orderv1.HoldOrderResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	held, err := s.service.HoldOrder(ctx, caller.ID(), req.GetRequestId(), order.HoldRequest{
		OrganisationID: req.GetOrganisationId(), Title: req.GetTitle(),
		Lines: service.Messages(req.GetLines(), lineRequest), Lifetime: time.Duration(req.GetLifetimeSeconds()) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &orderv1.HoldOrderResponse{Order: orderMessage(held)}, nil
}

// BookOrder pays for a held order.
func (s *Server) BookOrder(ctx context.Context, req *orderv1.BookOrderRequest) (*orderv1.BookOrderResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	booked, err := s.service.BookOrder(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetOrderId())
	if err != nil {
		return nil, err
	}
	return &orderv1.BookOrderResponse{Order: orderMessage(booked)}, nil
}

// CancelOrder gives the air time that is left back.
func (s *Server) CancelOrder(ctx context.Context, req *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	cancelled, err := s.service.CancelOrder(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetOrderId())
	if err != nil {
		return nil, err
	}
	return &orderv1.CancelOrderResponse{Order: orderMessage(cancelled)}, nil
}

// GetOrder returns an order.
func (s *Server) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	found, err := s.service.FindOrder(ctx, req.GetOrganisationId(), req.GetOrderId())
	if err != nil {
		return nil, err
	}
	return &orderv1.GetOrderResponse{Order: orderMessage(found)}, nil
}

// ListOrders returns a page of an organisation's orders.
func (s *Server) ListOrders(ctx context.Context, req *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	found, next, err := s.service.ListOrders(ctx, req.GetOrganisationId(), stateOf(req.GetState()), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.ListOrdersResponse{Orders: service.Messages(found, orderMessage), NextPageToken: next}, nil
}

func lineRequest(m *orderv1.LineRequest) order.LineRequest {
	l := order.LineRequest{
		DeviceID: m.GetDeviceId(), StartDate: m.GetFlight().GetStartDate(), EndDate: m.GetFlight().GetEndDate(),
		Dayparts: daypartsOf(m.GetDayparts()), Slots: int(m.GetSlots()), CreativeID: m.GetCreativeId(),
	}
	if most := m.GetMaxPrice(); most != nil {
		l.MaxPrice = &order.Money{Minor: most.GetAmountMinor(), Currency: most.GetCurrency()}
	}
	return l
}

func daypartsOf(list []*orderv1.Daypart) []airtime.Opening {
	return service.Messages(list, func(d *orderv1.Daypart) airtime.Opening {
		return airtime.Opening{Weekday: int(d.GetWeekday()), Open: int(d.GetStartMinute()), Close: int(d.GetEndMinute())}
	})
}

// stateOf is empty for any state.
func stateOf(s orderv1.OrderState) order.State {
	switch s {
	case orderv1.OrderState_ORDER_STATE_HELD:
		return order.Held
	case orderv1.OrderState_ORDER_STATE_EXPIRED:
		return order.Expired
	case orderv1.OrderState_ORDER_STATE_BOOKED:
		return order.Booked
	case orderv1.OrderState_ORDER_STATE_CANCELLED:
		return order.Cancelled
	case orderv1.OrderState_ORDER_STATE_COMPLETED:
		return order.Completed
	default:
		return ""
	}
}

func stateMessage(s order.State) orderv1.OrderState {
	return orderv1.OrderState(orderv1.OrderState_value["ORDER_STATE_"+string(s)])
}

func orderMessage(o order.Order) *orderv1.Order {
	return &orderv1.Order{
		OrderId: o.ID, OrganisationId: o.OrganisationID, Title: o.Title, State: stateMessage(o.State),
		Price: moneyMessage(o.Price), Refunded: moneyMessage(order.Money{Minor: o.RefundedMinor, Currency: o.Price.Currency}),
		Lines:     service.Messages(o.Lines, func(l order.Line) *orderv1.Line { return lineMessage(l, o.Price.Currency) }),
		LineCount: int32(o.LineCount), CreateTime: timestamppb.New(o.CreateTime), HoldExpireTime: timestamppb.New(o.HoldExpireTime),
		BookTime: moment(o.BookTime), CancelTime: moment(o.CancelTime),
	}
}

func lineMessage(l order.Line, currency string) *orderv1.Line {
	return &orderv1.Line{
		LineId: l.ID, DeviceId: l.DeviceID,
		Flight: &orderv1.Flight{StartDate: l.Flight.First.String(), EndDate: l.Flight.Last.String()},
		Dayparts: service.Messages(l.Dayparts, func(d airtime.Opening) *orderv1.Daypart {
			return &orderv1.Daypart{Weekday: int32(d.Weekday), StartMinute: int32(d.Open), EndMinute: int32(d.Close)}
		}),
		Slots:        service.Messages(l.Slots, func(slot int) int32 { return int32(slot) }),
		SlotsPerLoop: int32(l.LoopLength / l.SlotLength), SlotLengthSeconds: int32(l.SlotLength / time.Second),
		TimeZone: l.TimeZone, StartTime: moment(l.Start()), EndTime: moment(l.End()), Plays: l.Plays,
		Price: moneyMessage(order.Money{Minor: l.PriceMinor, Currency: currency}), CreativeId: l.CreativeID, ShownVersion: int32(l.ShownVersion),
	}
}

// Package server serves marquee.order.v1 over gRPC: it translates between messages
// and the domain, and decides nothing.
package server

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// Server implements OrderService. Validation, authentication, roles and the
// translation of errors are done by the interceptors before and after it.
type Server struct {
	orderv1.UnimplementedOrderServiceServer
	service *order.Service
}

// NewServer serves a service.
func NewServer(service *order.Service) *Server { return &Server{service: service} }

// moment is unset for the zero time.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func moneyMessage(m order.Money) *orderv1.Money {
	return &orderv1.Money{AmountMinor: m.Minor, Currency: m.Currency}
}

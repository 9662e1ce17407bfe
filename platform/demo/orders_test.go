package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// market answers as the order service does behind a gateway.
type market struct {
	orderv1.UnimplementedOrderServiceServer
	orderv1.UnimplementedCreativeServiceServer
	orderv1.UnimplementedWalletServiceServer

	platform  *platform
	creatives map[string]*orderv1.Creative
	orders    map[string]*orderv1.Order
	wallets   map[string]int64 // by organisation and currency
	unheard   int              // searches in which it has not heard of the display yet
	full      map[string]bool  // devices
}

// may says whether the caller is a member.
func (m *market) may(ctx context.Context, organisation string) error {
	if m.platform.organisations[organisation] != caller(ctx) || caller(ctx) == "" {
		return status.Error(codes.PermissionDenied, "not a member")
	}
	return nil
}

func (m *market) SearchAvailability(ctx context.Context, r *orderv1.SearchAvailabilityRequest) (*orderv1.SearchAvailabilityResponse, error) {
	if m.unheard--; m.unheard >= 0 {
		return &orderv1.SearchAvailabilityResponse{}, m.may(ctx, r.GetOrganisationId())
	}
	answer := &orderv1.SearchAvailabilityResponse{}
	for _, id := range r.GetDeviceIds() {
		d := m.platform.devices[id]
		found := &orderv1.Availability{DeviceId: id, FreeSlots: d.GetSettings().GetLoopLengthSeconds() / d.GetSettings().GetSlotLengthSeconds()}
		if m.full[id] {
			found.FreeSlots = r.GetSlots() - 1
		}
		answer.Displays = append(answer.Displays, found)
	}
	return answer, m.may(ctx, r.GetOrganisationId())
}

func (m *market) HoldOrder(ctx context.Context, r *orderv1.HoldOrderRequest) (*orderv1.HoldOrderResponse, error) {
	m.platform.changes["HoldOrder"]++
	o := &orderv1.Order{
		OrderId: fmt.Sprintf("ord_%03d", len(m.orders)), OrganisationId: r.GetOrganisationId(), Title: r.GetTitle(), State: orderv1.OrderState_ORDER_STATE_HELD,
		Price: &orderv1.Money{AmountMinor: 1000},
	}
	for i, line := range r.GetLines() {
		o.Price.Currency = m.platform.devices[line.GetDeviceId()].GetSettings().GetSlotPrice().GetCurrency()
		o.Lines = append(o.Lines, &orderv1.Line{
			LineId: fmt.Sprint("lin_", len(m.orders), i), DeviceId: line.GetDeviceId(), CreativeId: line.GetCreativeId(), EndTime: timestamppb.New(time.Now().Add(time.Hour)),
		})
	}
	m.orders[o.GetOrderId()] = o
	return &orderv1.HoldOrderResponse{Order: o}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) BookOrder(ctx context.Context, r *orderv1.BookOrderRequest) (*orderv1.BookOrderResponse, error) {
	o := m.orders[r.GetOrderId()]
	wallet := r.GetOrganisationId() + o.GetPrice().GetCurrency()
	if o.GetState() != orderv1.OrderState_ORDER_STATE_HELD || m.wallets[wallet] < o.GetPrice().GetAmountMinor() {
		return nil, status.Error(codes.FailedPrecondition, "not held, or no money")
	}
	m.platform.changes["BookOrder"]++
	m.wallets[wallet] -= o.GetPrice().GetAmountMinor()
	o.State = orderv1.OrderState_ORDER_STATE_BOOKED
	for _, line := range o.GetLines() {
		version := m.creatives[line.GetCreativeId()].GetVersions()[0]
		owner := m.platform.devices[line.GetDeviceId()].GetOrganisationId()
		if !slices.ContainsFunc(version.GetApprovals(), func(a *orderv1.Approval) bool { return a.GetOwnerOrganisationId() == owner }) {
			version.Approvals = append(version.Approvals, &orderv1.Approval{
				CreativeId: line.GetCreativeId(), Version: version.GetVersion(), OwnerOrganisationId: owner, State: orderv1.ApprovalState_APPROVAL_STATE_PENDING,
			})
		}
	}
	return &orderv1.BookOrderResponse{Order: o}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) GetOrder(ctx context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	return &orderv1.GetOrderResponse{Order: m.orders[r.GetOrderId()]}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) ListOrders(ctx context.Context, r *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	answer := &orderv1.ListOrdersResponse{}
	for _, o := range m.orders {
		if o.GetOrganisationId() == r.GetOrganisationId() {
			answer.Orders = append(answer.Orders, &orderv1.Order{OrderId: o.GetOrderId(), Title: o.GetTitle(), State: o.GetState(), Price: o.GetPrice()})
		}
	}
	slices.SortFunc(answer.Orders, func(a, b *orderv1.Order) int { return strings.Compare(b.GetOrderId(), a.GetOrderId()) })
	return answer, m.may(ctx, r.GetOrganisationId())
}

func (m *market) CreateCreative(ctx context.Context, r *orderv1.CreateCreativeRequest) (*orderv1.CreateCreativeResponse, error) {
	m.platform.changes["CreateCreative"]++
	c := &orderv1.Creative{
		CreativeId: fmt.Sprint("crv_", len(m.creatives)), OrganisationId: r.GetOrganisationId(), Title: r.GetTitle(),
		Versions: []*orderv1.CreativeVersion{{Version: 1, Content: r.GetContent()}},
	}
	m.creatives[c.GetCreativeId()] = c
	return &orderv1.CreateCreativeResponse{Creative: c}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) GetCreative(ctx context.Context, r *orderv1.GetCreativeRequest) (*orderv1.GetCreativeResponse, error) {
	return &orderv1.GetCreativeResponse{Creative: m.creatives[r.GetCreativeId()]}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) ListCreatives(ctx context.Context, r *orderv1.ListCreativesRequest) (*orderv1.ListCreativesResponse, error) {
	answer := &orderv1.ListCreativesResponse{}
	for _, c := range m.creatives {
		if c.GetOrganisationId() == r.GetOrganisationId() {
			answer.Creatives = append(answer.Creatives, c)
		}
	}
	return answer, m.may(ctx, r.GetOrganisationId())
}

func (m *market) DecideApproval(ctx context.Context, r *orderv1.DecideApprovalRequest) (*orderv1.DecideApprovalResponse, error) {
	m.platform.changes["DecideApproval"]++
	for _, a := range m.creatives[r.GetCreativeId()].GetVersions()[0].GetApprovals() {
		if a.GetOwnerOrganisationId() == r.GetOrganisationId() && r.GetApprove() {
			a.State = orderv1.ApprovalState_APPROVAL_STATE_APPROVED
		}
	}
	return &orderv1.DecideApprovalResponse{}, m.may(ctx, r.GetOrganisationId())
}

func (m *market) GetWallet(ctx context.Context, r *orderv1.GetWalletRequest) (*orderv1.GetWalletResponse, error) {
	answer := &orderv1.GetWalletResponse{}
	for _, currency := range []string{"EUR", "JPY", "USD"} {
		if amount, there := m.wallets[r.GetOrganisationId()+currency]; there {
			answer.Balances = append(answer.Balances, &orderv1.Money{AmountMinor: amount, Currency: currency})
		}
	}
	return answer, m.may(ctx, r.GetOrganisationId())
}

func (m *market) TopUpWallet(ctx context.Context, r *orderv1.TopUpWalletRequest) (*orderv1.TopUpWalletResponse, error) {
	m.platform.changes["TopUpWallet"]++
	m.wallets[r.GetOrganisationId()+r.GetAmount().GetCurrency()] += r.GetAmount().GetAmountMinor()
	return &orderv1.TopUpWalletResponse{}, m.may(ctx, r.GetOrganisationId())
}

// Displays that are full are left out, and an order of nothing else, too.
func TestAdvertiseWhereThereIsRoom(t *testing.T) {
	p, _, cfg := newPlatform(t)
	first, err := Make(t.Context(), cfg)
	require.NoError(t, err)
	named := func(name string) string {
		for id, d := range p.devices {
			if d.GetSettings().GetName() == name {
				return id
			}
		}
		return ""
	}
	clear(p.orders)
	p.full = map[string]bool{named("Berlin Central Station, hall"): true, named("Tokyo, Shibuya crossing"): true}
	p.taken()
	found, err := Make(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, 4, p.taken()["BookOrder"])
	require.Len(t, found.Advertisers[1].Orders, len(first.Advertisers[1].Orders)-1)
	lines := p.orders[found.Advertisers[0].Orders[0].OrderID].GetLines()
	require.Len(t, lines, 3)
	require.False(t, slices.ContainsFunc(lines, func(l *orderv1.Line) bool { return p.full[l.GetDeviceId()] }))
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_CLAIMED, p.devices[lines[0].GetDeviceId()].GetState())
}

package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// CreativeServer implements CreativeService, as Server does OrderService.
type CreativeServer struct {
	orderv1.UnimplementedCreativeServiceServer
	service *order.Service
}

// NewCreatives serves the creatives of a service.
func NewCreatives(service *order.Service) *CreativeServer { return &CreativeServer{service: service} }

// CreateCreative makes a creative.
func (s *CreativeServer) CreateCreative(ctx context.Context, req *orderv1.CreateCreativeRequest) (*orderv1.CreateCreativeResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	made, err := s.service.CreateCreative(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetTitle(), contentOf(req.GetContent()))
	if err != nil {
		return nil, err
	}
	return &orderv1.CreateCreativeResponse{Creative: creativeMessage(made)}, nil
}

// UpdateCreative gives a creative a new version.
func (s *CreativeServer) UpdateCreative(ctx context.Context, req *orderv1.UpdateCreativeRequest) (*orderv1.UpdateCreativeResponse, error) {
	changed, err := s.service.UpdateCreative(ctx, req.GetOrganisationId(), req.GetCreativeId(), req.GetTitle(), contentOf(req.GetContent()), int(req.GetVersion()))
	if err != nil {
		return nil, err
	}
	return &orderv1.UpdateCreativeResponse{Creative: creativeMessage(changed)}, nil
}

// GetCreative returns a creative with all its versions.
func (s *CreativeServer) GetCreative(ctx context.Context, req *orderv1.GetCreativeRequest) (*orderv1.GetCreativeResponse, error) {
	found, err := s.service.FindCreative(ctx, req.GetOrganisationId(), req.GetCreativeId())
	if err != nil {
		return nil, err
	}
	return &orderv1.GetCreativeResponse{Creative: creativeMessage(found)}, nil
}

// ListCreatives returns a page of an organisation's creatives.
func (s *CreativeServer) ListCreatives(ctx context.Context, req *orderv1.ListCreativesRequest) (*orderv1.ListCreativesResponse, error) {
	found, next, err := s.service.ListCreatives(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.ListCreativesResponse{Creatives: service.Messages(found, creativeMessage), NextPageToken: next}, nil
}

// TakeDownCreative takes a creative off all displays.
func (s *CreativeServer) TakeDownCreative(ctx context.Context, req *orderv1.TakeDownCreativeRequest) (*orderv1.TakeDownCreativeResponse, error) {
	taken, err := s.service.TakeDownCreative(ctx, req.GetOrganisationId(), req.GetCreativeId())
	if err != nil {
		return nil, err
	}
	return &orderv1.TakeDownCreativeResponse{Creative: creativeMessage(taken)}, nil
}

// ListApprovals returns a page of what an organisation was asked to approve.
func (s *CreativeServer) ListApprovals(ctx context.Context, req *orderv1.ListApprovalsRequest) (*orderv1.ListApprovalsResponse, error) {
	found, next, err := s.service.ListApprovals(ctx, req.GetOrganisationId(), approvalStateOf(req.GetState()), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.ListApprovalsResponse{Approvals: service.Messages(found, approvalMessage), NextPageToken: next}, nil
}

// DecideApproval approves a version or rejects it.
func (s *CreativeServer) DecideApproval(ctx context.Context, req *orderv1.DecideApprovalRequest) (*orderv1.DecideApprovalResponse, error) {
	decided, err := s.service.DecideApproval(ctx, req.GetOrganisationId(), req.GetCreativeId(), int(req.GetVersion()), req.GetApprove(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return &orderv1.DecideApprovalResponse{Approval: approvalMessage(decided)}, nil
}

// SetLineCreative says what lines of an order show.
func (s *Server) SetLineCreative(ctx context.Context, req *orderv1.SetLineCreativeRequest) (*orderv1.SetLineCreativeResponse, error) {
	changed, err := s.service.SetLineCreative(ctx, req.GetOrganisationId(), req.GetOrderId(), req.GetLineIds(), req.GetCreativeId())
	if err != nil {
		return nil, err
	}
	return &orderv1.SetLineCreativeResponse{Order: orderMessage(changed)}, nil
}

func contentOf(m *orderv1.CreativeContent) order.Content {
	t := m.GetText()
	if t == nil {
		return order.Content{SHA256: m.GetMediaSha256()}
	}
	return order.Content{Text: &order.Text{
		Text: t.GetText(), Color: t.GetColor(), Background: t.GetBackground(), SizePercent: int(t.GetSizePercent()),
		Alignment: alignmentOf(t.GetAlignment()), Bold: t.GetBold(),
	}}
}

func contentMessage(v order.Version) *orderv1.CreativeContent {
	t := v.Text
	if t == nil {
		return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_MediaSha256{MediaSha256: v.SHA256}}
	}
	return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: &orderv1.TextContent{
		Text: t.Text, Color: t.Color, Background: t.Background, SizePercent: int32(t.SizePercent),
		Alignment: orderv1.Alignment(orderv1.Alignment_value["ALIGNMENT_"+strings.ToUpper(string(t.Alignment))]), Bold: t.Bold,
	}}}
}

// alignmentOf is empty for the default.
func alignmentOf(a orderv1.Alignment) order.Alignment {
	switch a {
	case orderv1.Alignment_ALIGNMENT_LEFT:
		return order.Left
	case orderv1.Alignment_ALIGNMENT_CENTER:
		return order.Center
	case orderv1.Alignment_ALIGNMENT_RIGHT:
		return order.Right
	default:
		return ""
	}
}

func creativeMessage(c order.Creative) *orderv1.Creative {
	return &orderv1.Creative{
		CreativeId: c.ID, OrganisationId: c.OrganisationID, Title: c.Title, TakeDownTime: moment(c.TakeDownTime),
		Versions: service.Messages(c.Versions, versionMessage), CreateTime: timestamppb.New(c.CreateTime),
	}
}

func versionMessage(v order.Version) *orderv1.CreativeVersion {
	return &orderv1.CreativeVersion{
		Version: int32(v.Number), Content: contentMessage(v), MediaType: v.MediaType, Url: order.MediaPath(v.SHA256), Sha256: v.SHA256,
		WidthPx: int32(v.Width), HeightPx: int32(v.Height), DurationMs: int32(v.Duration / time.Millisecond),
		ThumbnailUrl: order.MediaPath(v.Thumbnail), CreateTime: timestamppb.New(v.CreateTime), Approvals: service.Messages(v.Approvals, approvalMessage),
	}
}

func approvalStateOf(s orderv1.ApprovalState) order.ApprovalState {
	switch s {
	case orderv1.ApprovalState_APPROVAL_STATE_PENDING:
		return order.Pending
	case orderv1.ApprovalState_APPROVAL_STATE_APPROVED:
		return order.Approved
	case orderv1.ApprovalState_APPROVAL_STATE_REJECTED:
		return order.Rejected
	default:
		return ""
	}
}

func approvalMessage(a order.Approval) *orderv1.Approval {
	message := &orderv1.Approval{
		CreativeId: a.CreativeID, Version: int32(a.Version), OwnerOrganisationId: a.OwnerID,
		State: orderv1.ApprovalState(orderv1.ApprovalState_value["APPROVAL_STATE_"+string(a.State)]), Reason: a.Reason,
		CreateTime: timestamppb.New(a.CreateTime), DecideTime: moment(a.DecideTime),
	}
	if a.Creative != nil {
		message.Creative = creativeMessage(*a.Creative)
	}
	return message
}

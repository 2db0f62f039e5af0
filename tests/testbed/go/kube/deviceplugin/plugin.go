// Package deviceplugin gives a node GPUs that are not there, through the kubelet's real device plugin API, so that
// manifests, scheduling and device health are the real ones. A device is unhealthy while the file
// <health folder>/<device id> exists: the test bed's driver writes and removes it.
package deviceplugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const pollInterval = 200 * time.Millisecond

type plugin struct {
	api.UnimplementedDevicePluginServer
	resource string
	count    int
	health   string
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch reports every device at once and again whenever one's health changes.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	reported := ""
	for {
		devices := p.devices()
		if now := fmt.Sprint(devices); now != reported {
			if err := stream.Send(&api.ListAndWatchResponse{Devices: devices}); err != nil {
				return err
			}
			reported = now
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(pollInterval):
		}
	}
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}

func (p *plugin) devices() []*api.Device {
	devices := make([]*api.Device, 0, p.count)
	for index := range p.count {
		id := fmt.Sprintf("gpu-%d", index)
		health := api.Healthy
		if _, err := os.Stat(filepath.Join(p.health, id)); err == nil {
			health = api.Unhealthy
		}
		devices = append(devices, &api.Device{ID: id, Health: health})
	}
	return devices
}

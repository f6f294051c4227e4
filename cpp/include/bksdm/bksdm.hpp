// All of the library but the engines, whose headers are openvino.hpp, onnxruntime.hpp and
// tensorrt.hpp.
#pragma once

#include "bksdm/model.hpp"

// The version of the library, that of the Python package whose pictures it draws.
#pragma once

#define BKSDM_VERSION "0.2.0"

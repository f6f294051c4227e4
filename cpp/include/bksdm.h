/* bksdm for C and whatever calls C: one shared library, opaque handles, no exceptions.
 *
 * Every call that can fail returns a code, BKSDM_OK or another, and puts an error with its message
 * where `error` points, unless that is NULL; free it with bksdm_error_free. Texts are UTF-8 and end
 * with a zero. Structs begin with their size, so that a program built with an older header goes on
 * to work: fill them by their init function. A model may be used by many threads at once; a run or
 * a result by one at a time. */
#ifndef BKSDM_H
#define BKSDM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(BKSDM_BUILD)
#define BKSDM_API __declspec(dllexport)
#elif defined(_WIN32)
#define BKSDM_API __declspec(dllimport)
#else
#define BKSDM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bksdm_error bksdm_error;
typedef struct bksdm_model bksdm_model;
typedef struct bksdm_run bksdm_run;
typedef struct bksdm_result bksdm_result;
typedef struct bksdm_cancellation bksdm_cancellation;
typedef struct bksdm_outputs bksdm_outputs;

enum {
    BKSDM_OK = 0,
    BKSDM_REQUEST = 1,    /* an option is wrong; the message says what it must be */
    BKSDM_BUNDLE = 2,     /* a file of a bundle is missing or damaged; names it */
    BKSDM_ENGINE = 3,     /* a network cannot be loaded or run */
    BKSDM_NON_FINITE = 4, /* a network produced NaN or infinity */
    BKSDM_CANCELLED = 5,  /* stopped by the caller */
    BKSDM_FAILED = 6      /* anything else, as memory that is used up */
};

/* Types of tensors. */
enum { BKSDM_FLOAT32 = 0, BKSDM_FLOAT16 = 1, BKSDM_INT64 = 2, BKSDM_INT32 = 3 };

BKSDM_API const char* bksdm_version(void);

BKSDM_API int32_t bksdm_error_code(const bksdm_error* error);
BKSDM_API const char* bksdm_error_message(const bksdm_error* error);
BKSDM_API void bksdm_error_free(bksdm_error* error);

/* A picture of 8 bits, row by row from the top; 3 channels are RGB, 1 is grey. */
typedef struct bksdm_picture {
    const uint8_t* pixels;
    size_t width, height, channels;
} bksdm_picture;

/* Stops what it was given to, from any thread. */
BKSDM_API bksdm_cancellation* bksdm_cancellation_new(void);
BKSDM_API void bksdm_cancel(const bksdm_cancellation* cancellation);
BKSDM_API void bksdm_cancellation_free(bksdm_cancellation* cancellation);

/* Called after every step, in the thread that draws; returning 0 cancels. */
typedef int32_t (*bksdm_on_step)(void* user, size_t done, size_t total);

/* What is asked for; the options of bksdm.GenerationConfig. */
typedef struct bksdm_request {
    size_t struct_size;
    const char* prompt;
    const char* negative_prompt;
    const char* sampler;    /* as the bundle has a table of; empty is the model's own */
    uint32_t width, height; /* in pixels; 0 is the model's, or the image's */
    uint32_t steps, images;
    double guidance_scale, guidance_rescale, guidance_start, guidance_end;
    const uint64_t* seeds; /* one for the batch, or one for each image */
    size_t seed_count;
    const bksdm_picture* image; /* to start from; NULL for noise */
    const bksdm_picture* mask;  /* grey, white is made anew; NULL for all */
    double strength;            /* below 0 is the default, 0.8, or 1 with a mask */
    bksdm_on_step on_step;
    void* user;
    const bksdm_cancellation* cancellation;
} bksdm_request;

/* Fill in the defaults; `size` is sizeof(bksdm_request). */
BKSDM_API void bksdm_request_init(bksdm_request* request, size_t size);

typedef struct bksdm_model_options {
    size_t struct_size;
    const char* engine;    /* "openvino"; "onnxruntime" and "tensorrt" where they were built in */
    const char* folder;    /* openvino: rewritten networks, NULL is the bundle's own; onnxruntime:
                              from which graphs name weights, NULL is each one's own; tensorrt: the
                              plans */
    const char* device;    /* openvino: "CPU" */
    const char* precision; /* openvino: "f32", "bf16", or NULL for what fits the bundle */
    int32_t threads;       /* 0 is one for each physical core */
} bksdm_model_options;

BKSDM_API void bksdm_model_options_init(bksdm_model_options* options, size_t size);

/* Open a bundle with an engine of this library. */
BKSDM_API int32_t bksdm_model_open(const char* bundle, const bksdm_model_options* options,
                                   bksdm_model** model, bksdm_error** error);

/* A tensor; where it only describes one, `data` is NULL and -1 stands for any length. */
typedef struct bksdm_tensor {
    const char* name;
    int32_t type;
    size_t rank;
    const int64_t* shape;
    const void* data;
} bksdm_tensor;

/* Runs a network; adds its outputs and returns 0. Several threads may call it at once. */
typedef int32_t (*bksdm_run_network)(void* user, const bksdm_tensor* inputs, size_t count,
                                     bksdm_outputs* outputs);

/* Copy an output; returns a code. */
BKSDM_API int32_t bksdm_outputs_add(bksdm_outputs* outputs, const bksdm_tensor* tensor);

/* A network of your own. */
typedef struct bksdm_network {
    const bksdm_tensor* inputs;
    size_t input_count;
    bksdm_run_network run;
    void* user;
} bksdm_network;

typedef struct bksdm_networks {
    size_t struct_size;
    const char* name; /* of the engine, for pictures' records */
    bksdm_network text_encoder, unet, vae_decoder;
    bksdm_network vae_encoder; /* for pictures to start from; `run` may be NULL */
} bksdm_networks;

BKSDM_API void bksdm_networks_init(bksdm_networks* networks, size_t size);

/* Open a bundle with networks of your own. */
BKSDM_API int32_t bksdm_model_open_with(const char* bundle, const bksdm_networks* networks,
                                        bksdm_model** model, bksdm_error** error);
/* Whatever it draws has to be done. */
BKSDM_API void bksdm_model_free(bksdm_model* model);

/* Token ids of a prompt, as many as `capacity` allows; `count` is how many there are, `cut` how
 * many of the text did not fit. */
BKSDM_API int32_t bksdm_tokenize(bksdm_model* model, const char* prompt, int64_t* ids,
                                 size_t capacity, size_t* count, size_t* cut, bksdm_error** error);

/* Draw. */
BKSDM_API int32_t bksdm_generate(bksdm_model* model, const bksdm_request* request,
                                 bksdm_result** result, bksdm_error** error);

/* Or step by step: begin requests, make the next step of any of them in one call of the UNet until
 * they are done, and decode them. What a request points to is copied when it begins, but for the
 * cancellation and `user`. */
BKSDM_API int32_t bksdm_run_start(bksdm_model* model, const bksdm_request* request, bksdm_run** run,
                                  bksdm_error** error);
BKSDM_API int32_t bksdm_run_step(bksdm_model* model, bksdm_run* const* runs, size_t count,
                                 bksdm_error** error);
BKSDM_API int32_t bksdm_run_is_done(const bksdm_run* run);
BKSDM_API int32_t bksdm_run_finish(bksdm_model* model, bksdm_run* run, bksdm_result** result,
                                   bksdm_error** error);
BKSDM_API void bksdm_run_free(bksdm_run* run);

/* Of a result, which keeps what it returns until it is freed. */
BKSDM_API size_t bksdm_result_count(const bksdm_result* result);
BKSDM_API int32_t bksdm_result_picture(const bksdm_result* result, size_t index,
                                       bksdm_picture* picture);
/* As a PNG that says how it was made. */
BKSDM_API int32_t bksdm_result_png(bksdm_result* result, size_t index, const uint8_t** bytes,
                                   size_t* count, bksdm_error** error);
BKSDM_API size_t bksdm_result_cut_tokens(const bksdm_result* result);
BKSDM_API double bksdm_result_seconds(const bksdm_result* result);
BKSDM_API void bksdm_result_free(bksdm_result* result);

#ifdef __cplusplus
}
#endif

#endif

/* The C interface from C: c_test BUNDLE, with networks of its own. */
#include <bksdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1;                                                       \
        }                                                                   \
    } while (0)

/* Adds a tensor of zeros, of the first input's shape but for its last lengths. */
static int32_t zeros(bksdm_outputs* outputs, const char* name, const int64_t* shape) {
    bksdm_tensor tensor;
    int64_t count = 1;
    size_t i;
    int32_t code;
    for (i = 0; i < 4; ++i) count *= shape[i] == 0 ? 1 : shape[i];
    tensor.name = name;
    tensor.type = BKSDM_FLOAT32;
    tensor.rank = shape[3] == 0 ? 3 : 4;
    tensor.shape = shape;
    tensor.data = calloc((size_t)count, sizeof(float));
    code = bksdm_outputs_add(outputs, &tensor);
    free((void*)tensor.data);
    return code;
}

static const bksdm_tensor* find(const bksdm_tensor* inputs, size_t count, const char* name) {
    size_t i;
    for (i = 0; i < count; ++i)
        if (strcmp(inputs[i].name, name) == 0) return inputs + i;
    return NULL;
}

static int32_t encode(void* user, const bksdm_tensor* inputs, size_t count,
                      bksdm_outputs* outputs) {
    int64_t shape[4] = {0, 0, 2, 0};
    (void)user;
    (void)count;
    shape[0] = inputs[0].shape[0];
    shape[1] = inputs[0].shape[1];
    return zeros(outputs, "last_hidden_state", shape);
}

static int32_t predict(void* user, const bksdm_tensor* inputs, size_t count,
                       bksdm_outputs* outputs) {
    ++*(int*)user;
    return zeros(outputs, "out_sample", find(inputs, count, "sample")->shape);
}

static int32_t decode(void* user, const bksdm_tensor* inputs, size_t count,
                      bksdm_outputs* outputs) {
    int64_t shape[4] = {1, 3, 0, 0};
    (void)user;
    (void)count;
    shape[2] = 8 * inputs[0].shape[2];
    shape[3] = 8 * inputs[0].shape[3];
    return zeros(outputs, "sample", shape);
}

static int32_t stop(void* user, size_t done, size_t total) {
    (void)user;
    return done < total / 2;
}

int main(int count, char** arguments) {
    static const int64_t any[4] = {-1, -1, -1, -1};
    bksdm_tensor ids = {"input_ids", BKSDM_INT64, 2, any, NULL};
    bksdm_tensor told[3] = {{"sample", BKSDM_FLOAT32, 4, any, NULL},
                            {"timestep", BKSDM_FLOAT32, 1, any, NULL},
                            {"encoder_hidden_states", BKSDM_FLOAT32, 3, any, NULL}};
    bksdm_tensor latents = {"latent_sample", BKSDM_FLOAT32, 4, any, NULL};
    int evaluations = 0;
    bksdm_networks networks;
    bksdm_model_options options;
    bksdm_request request;
    bksdm_model* model = NULL;
    bksdm_error* error = NULL;
    bksdm_result* result = NULL;
    bksdm_run* run = NULL;
    bksdm_picture picture;
    bksdm_cancellation* cancellation;
    const uint8_t* png = NULL;
    size_t size = 0;
    if (count < 2) return 2;

    bksdm_networks_init(&networks, sizeof networks);
    networks.text_encoder.inputs = &ids;
    networks.text_encoder.input_count = 1;
    networks.text_encoder.run = encode;
    networks.unet.inputs = told;
    networks.unet.input_count = 3;
    networks.unet.run = predict;
    networks.unet.user = &evaluations;
    networks.vae_decoder.inputs = &latents;
    networks.vae_decoder.input_count = 1;
    networks.vae_decoder.run = decode;

    CHECK(bksdm_model_open_with("no such folder", &networks, &model, &error) == BKSDM_BUNDLE);
    CHECK(bksdm_error_code(error) == BKSDM_BUNDLE);
    CHECK(strstr(bksdm_error_message(error), "no such folder") != NULL);
    bksdm_error_free(error);
    bksdm_model_options_init(&options, sizeof options);
    options.engine = "nobody's";
    CHECK(bksdm_model_open(arguments[1], &options, &model, NULL) == BKSDM_ENGINE);
    CHECK(bksdm_model_open_with(arguments[1], &networks, &model, &error) == BKSDM_OK);
    CHECK(error == NULL);

    bksdm_request_init(&request, sizeof request);
    CHECK(request.struct_size == sizeof request && request.steps == 50);
    request.prompt = "a red apple";
    request.steps = 5;
    CHECK(bksdm_generate(model, &request, &result, &error) == BKSDM_OK);
    CHECK(evaluations == 5 && bksdm_result_count(result) == 1);
    CHECK(bksdm_result_picture(result, 0, &picture) == BKSDM_OK);
    CHECK(picture.width == 64 && picture.channels == 3 && picture.pixels[0] == 128);
    CHECK(bksdm_result_picture(result, 1, &picture) == BKSDM_REQUEST);
    CHECK(bksdm_result_png(result, 0, &png, &size, NULL) == BKSDM_OK);
    CHECK(size > 64 * 64 * 3 && memcmp(png + 1, "PNG", 3) == 0);
    bksdm_result_free(result);

    request.on_step = stop;
    CHECK(bksdm_generate(model, &request, &result, &error) == BKSDM_CANCELLED);
    bksdm_error_free(error);
    request.on_step = NULL;
    cancellation = bksdm_cancellation_new();
    bksdm_cancel(cancellation);
    request.cancellation = cancellation;
    CHECK(bksdm_generate(model, &request, &result, NULL) == BKSDM_CANCELLED);
    request.cancellation = NULL;
    bksdm_cancellation_free(cancellation);

    CHECK(bksdm_run_start(model, &request, &run, &error) == BKSDM_OK);
    CHECK(bksdm_run_finish(model, run, &result, NULL) == BKSDM_REQUEST);
    while (!bksdm_run_is_done(run)) CHECK(bksdm_run_step(model, &run, 1, &error) == BKSDM_OK);
    CHECK(bksdm_run_finish(model, run, &result, &error) == BKSDM_OK);
    bksdm_result_free(result);
    bksdm_run_free(run);

    /* A program with a later header, and one whose header ends before the seeds. */
    request.struct_size = sizeof request + 8;
    CHECK(bksdm_generate(model, &request, &result, NULL) == BKSDM_REQUEST);
    request.struct_size = offsetof(bksdm_request, seeds);
    CHECK(bksdm_generate(model, &request, &result, NULL) == BKSDM_OK);
    bksdm_result_free(result);
    bksdm_model_free(model);
    return 0;
}

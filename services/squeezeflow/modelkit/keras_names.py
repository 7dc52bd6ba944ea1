"""What a Keras file may name: classes and functions that belong to Keras 2 or Keras 3 and carry no code of their own.

An allow-list, so that what a later Keras version adds is refused until somebody has looked at it. Refused on purpose:
Lambda, TFSMLayer, JaxLayer, FlaxLayer, TorchModuleWrapper (they carry or load foreign code), TensorFlowOpLayer,
ClassMethod and InstanceMethod (they name any operation or method).
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CODE_LAYERS = _words(
    """
    Lambda TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper TensorFlowOpLayer ClassMethod InstanceMethod
    """
)

MODELS = _words(
    """
    Sequential Functional Model
    """
)

LAYERS = _words(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention
    AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D
    Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose Convolution2D
    Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D Cropping3D CuDNNGRU
    CuDNNLSTM CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
    Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D
    GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupQueryAttention GroupedQueryAttention HashedCrossing Hashing Identity InputLayer IntegerLookup LSTM
    LSTMCell LayerNormalization LayerScale LeakyReLU LocallyConnected1D LocallyConnected2D Masking
    MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum
    MelSpectrogram Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline
    RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomFourierFeatures RandomGaussianBlur
    RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector
    Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D
    SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells StochasticDepth StringLookup
    Subtract SyncBatchNormalization TextVectorization ThresholdedReLU TimeDistributed UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D BatchNormalizationV1
    BatchNormalizationV2 GRUV2 LSTMV2 GRUCellV2 LSTMCellV2 TFOpLambda SlicingOpLambda
    """
)

# Initialisers, regularisers, constraints, policies, optimizers, schedules, losses, metrics.
PARTS = _words(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer LecunNormal LecunUniform Ones
    Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer TruncatedNormal
    VarianceScaling Zeros GlorotNormalV2 GlorotUniformV2 HeNormalV2 HeUniformV2 LecunNormalV2 LecunUniformV2 L1
    L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm AWQDTypePolicy DTypePolicy
    DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy Policy PolicyV1 QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy SeedGenerator TensorShape Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb
    Lion LossScaleOptimizer Muon Nadam RMSprop SGD ScheduleFreeAdamW CosineDecay CosineDecayRestarts
    ExponentialDecay InverseTimeDecay PiecewiseConstantDecay PolynomialDecay BinaryCrossentropy
    BinaryFocalCrossentropy CTC CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalGeneralizedCrossEntropy CategoricalHinge Circle CosineSimilarity Dice Hinge Huber KLDivergence
    LogCosh MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
    SparseCategoricalCrossentropy SquaredHinge Tversky AUC Accuracy BinaryAccuracy BinaryIoU CategoricalAccuracy
    ConcordanceCorrelation F1Score FBetaScore FalseNegatives FalsePositives IoU LogCoshError Mean MeanIoU
    MeanMetricWrapper MeanRelativeError MeanTensor OneHotIoU OneHotMeanIoU PearsonCorrelation Precision
    PrecisionAtRecall R2Score Recall RecallAtPrecision RootMeanSquaredError SensitivityAtSpecificity
    SparseCategoricalAccuracy SparseTopKCategoricalAccuracy SpecificityAtSensitivity Sum TopKCategoricalAccuracy
    TrueNegatives TruePositives
    """
)

# Written in place of plain values; nothing is looked up by them.
VALUES = _words(
    """
    __tensor__ __numpy__ __bytes__ __slice__ __ellipsis__ __keras_tensor__ __tuple__ __complex__
    """
)

FUNCTIONS = _words(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold KLD MAE MAPE MSE MSLE
    binary_crossentropy binary_focal_crossentropy categorical_crossentropy categorical_focal_crossentropy
    categorical_generalized_cross_entropy categorical_hinge circle cosine_similarity ctc dice hinge huber
    kl_divergence kld kullback_leibler_divergence log_cosh logcosh mae mape mean_absolute_error
    mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error mse msle poisson
    sparse_categorical_crossentropy squared_hinge tversky binary_accuracy categorical_accuracy
    concordance_correlation pearson_correlation sparse_categorical_accuracy sparse_top_k_categorical_accuracy
    top_k_categorical_accuracy constant glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal
    lecun_uniform ones orthogonal random_normal random_uniform truncated_normal variance_scaling zeros
    """
)

# Packages of both libraries that hold those classes; `utils`, `saving`, `config` and others hold what attacks used.
PACKAGES = _words(
    """
    activations applications constraints dtype_policies engine initializers layers legacy losses metrics
    mixed_precision models normalization optimizers ops premade_models random regularizers
    """
)

ROOTS = ("tf_keras", "keras", "keras_core", "tensorflow.keras", "tensorflow.python.keras")

# What a TFOpLambda layer may call: pure functions of tensors.
TF_FUNCTION_PACKAGES = _words(
    """
    math nn linalg signal bitwise __operators__
    """
)

TF_FUNCTIONS = _words(
    """
    abs add argmax argmin argsort broadcast_to cast clip_by_value concat convert_to_tensor cos cumsum divide
    equal exp expand_dims eye fill floor gather gather_nd greater greater_equal identity less less_equal
    logical_and logical_not logical_or matmul maximum minimum multiply negative norm not_equal one_hot ones
    ones_like pad pow range rank realdiv reduce_all reduce_any reduce_max reduce_mean reduce_min reduce_prod
    reduce_sum repeat reshape reverse roll round searchsorted sequence_mask shape sigmoid sign sin size slice
    sort split sqrt square squeeze stack stop_gradient strided_slice subtract tan tanh tensordot tile transpose
    truediv unstack where zeros zeros_like compat.v1.concat compat.v1.expand_dims compat.v1.gather
    compat.v1.gather_nd compat.v1.pad compat.v1.shape compat.v1.size compat.v1.split compat.v1.squeeze
    compat.v1.transpose compat.v1.where image.resize
    """
)

// run_adapted MODEL.pt LIBADAPTERX.so
//
// Loads a file of adapterx.export.to_torchscript and the operator library that it needs, runs it at two shapes, and
// prints the names of its adapters and what it returns. Exit status: 0, 1 for a file that does not load or run, 2 for
// wrong arguments.
#include <dlfcn.h>
#include <torch/script.h>

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

namespace {

constexpr char kMetadata[] = "adapterx_export.json";
constexpr int64_t kFirstId = 5;  // below are the special tokens of most vocabularies

// Names in the list "adapters" of the metadata, such as [{"name": "sentiment", "rule": ..., "config": {...}}]. Enough
// JSON for this list, which adapterx writes itself; a program that needs more should take a JSON library.
std::vector<std::string> adapter_names(const std::string& metadata) {
  std::vector<std::string> names;
  size_t at = metadata.find("\"adapters\": [");
  if (at == std::string::npos) {
    return names;
  }
  std::string text, key;
  int depth = 0;  // 1 in the list, 2 in an adapter
  for (at = metadata.find('[', at); at < metadata.size(); ++at) {
    const char c = metadata[at];
    if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      if (--depth == 0) {
        break;
      }
    } else if (c == '"') {
      text.clear();
      while (++at < metadata.size() && metadata[at] != '"') {
        if (metadata[at] == '\\') {
          ++at;  // the names themselves hold no escapes
        }
        text += metadata[at];
      }
      if (depth == 2 && key == "name") {
        names.push_back(text);
      }
      key = key.empty() ? text : "";
    } else if (c == ',') {
      key.clear();
    }
  }
  return names;
}

// input_ids, attention_mask and token_type_ids, as many of them as the model takes: int64 (batch, sequence).
std::vector<c10::IValue> example(size_t count, int64_t batch, int64_t sequence) {
  const at::Tensor ids = torch::arange(kFirstId, kFirstId + batch * sequence).reshape({batch, sequence});
  std::vector<c10::IValue> inputs{ids, torch::ones_like(ids), torch::zeros_like(ids)};
  inputs.resize(count);
  return inputs;
}

void run(torch::jit::Module& model, int64_t batch, int64_t sequence) {
  const size_t inputs = model.get_method("forward").function().getSchema().arguments().size() - 1;  // without self
  c10::IValue result = model.forward(example(inputs, batch, sequence));
  const at::Tensor output = (result.isTuple() ? result.toTupleRef().elements()[0] : result).toTensor();
  const at::Tensor values = output.flatten().to(at::kDouble);
  std::cout << "input " << batch << " x " << sequence << ": output " << output.sizes() << ", sum "
            << values.sum().item<double>() << ", begins";
  for (int64_t i = 0; i < std::min<int64_t>(3, values.numel()); ++i) {
    std::cout << " " << values[i].item<double>();
  }
  std::cout << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: run_adapted MODEL.pt LIBADAPTERX.so\n"
              << "  MODEL.pt        a file of adapterx.export.to_torchscript\n"
              << "  LIBADAPTERX.so  the operator library, in the folder of the installed package adapterx\n";
    return 2;
  }
  if (!dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL)) {  // registers the operator
    std::cerr << "run_adapted: cannot load the operator library: " << dlerror() << "\n";
    return 1;
  }
  try {
    torch::jit::ExtraFilesMap extra{{kMetadata, ""}};
    torch::jit::Module model = torch::jit::load(argv[1], c10::nullopt, extra);
    model.eval();
    const std::vector<std::string> names = adapter_names(extra[kMetadata]);
    std::cout << "adapters:";
    for (const std::string& name : names) {
      std::cout << " " << name;
    }
    std::cout << (names.empty() ? " none\n" : "\n") << std::setprecision(9);
    c10::InferenceMode guard;
    run(model, 2, 8);
    run(model, 3, 19);
  } catch (const std::exception& error) {  // a missing operator is no c10::Error
    std::cerr << "run_adapted: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
